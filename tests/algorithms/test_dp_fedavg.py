"""DP-FedAvg and DP-FTRL: what is clipped, what is divided by, which noise is added, and
FedAvg in the limit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import SIZES, everyone, make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.dp_fedavg import AdaptiveClip, dp_fedavg, update_noise
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.population import samplers
from fedjax_fm.privacy import (
    banded,
    binary_tree,
    clip,
    independent,
    square_root_coefficients,
)

TASK, N = ffm.Task(mlp_loss), len(SIZES)
HOW = {"local_steps": 3, "batch_size": 16}


def simulator(algorithm, **how):
    delta, backbone = make_trees()
    how = {"cohort_size": N, "sampler": everyone(N), "seed": 4, "devices": 1} | how
    population = ffm.Population.from_clients(make_clients())
    return ffm.Simulator(algorithm, population, backbone=backbone, **how), delta


def run(algorithm, rounds=3, **how):
    one, delta = simulator(algorithm, **how)
    return one.run(one.init(delta), rounds)


def private(
    noise=None, multiplier=0.0, norm=1.0, rate=0.05, server=None, adaptive=None
):
    noise = noise or independent()
    return dp_fedavg(
        TASK,
        optax.sgd(rate),
        server,
        noise=noise,
        noise_multiplier=multiplier,
        clip_norm=norm,
        adaptive=adaptive,
        **HOW,
    )


def flat(tree):
    return np.concatenate(
        [np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(tree)]
    )


def test_without_noise_and_clip_it_is_fedavg_with_server_momentum():
    server = optax.sgd(0.9, momentum=0.9)
    plain = ffm.fedavg(TASK, optax.sgd(0.05), server, **HOW)
    (exchange,) = plain.exchanges
    weighted = exchange.client

    def client(backbone, message):  # everybody counts the same
        one = weighted(backbone, message)
        return lambda *args: one(*args)._replace(weight=jnp.float32(1))

    uniform = plain._replace(
        exchanges=(exchange._replace(client=client, reduce=weighted_mean()),)
    )
    expected, _ = run(uniform)
    state, _ = run(private(norm=np.inf, server=server))
    np.testing.assert_allclose(
        flat(state.delta), flat(expected.delta), rtol=2e-5, atol=1e-6
    )


def updates_by_hand(norm):
    """sum_k clip(D_k) of the first round, by a plain loop."""
    delta, backbone = make_trees()
    total, norms = 0.0, []
    for data in make_clients():
        batch, w = jax.tree.map(jnp.asarray, data), delta
        for _ in range(3):
            gradient = jax.grad(
                lambda d, batch=batch: jnp.mean(mlp_loss(d, backbone, batch, None)[0])
            )(w)
            w = jax.tree.map(lambda a, b: a - 0.05 * b, w, gradient)
        update = flat(delta) - flat(w)
        norms.append(np.linalg.norm(update))
        total = total + update * min(1.0, norm / norms[-1])
    return total, np.array(norms)


def test_the_sum_of_clipped_updates_over_the_planned_cohort():
    _, norms = updates_by_hand(1.0)
    norm = float(np.median(norms))
    total, _ = updates_by_hand(norm)
    delta, _ = make_trees()
    state, _ = run(private(norm=norm), rounds=1)
    np.testing.assert_allclose(
        flat(state.delta), flat(delta) - total / N, rtol=2e-5, atol=1e-6
    )
    # The denominator is what was planned, not who came.
    state, metrics = run(
        private(norm=norm),
        rounds=1,
        cohort_size=4,
        sampler=everyone(N)._replace(law=None),
    )
    assert metrics["clients"] == N
    np.testing.assert_allclose(
        flat(state.delta), flat(delta) - total / 4, rtol=2e-5, atol=1e-6
    )


def test_clip_bounds_and_edge_cases():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    clipped, within = clip(tree, 2.5)
    np.testing.assert_allclose(flat(clipped), [1.5, 0.0, 2.0], rtol=1e-6)
    assert not within
    assert all(
        np.linalg.norm(flat(clip(tree, s)[0])) <= s * (1 + 1e-6)
        for s in (1e-6, 0.1, 4.999)
    )
    same, within = clip(tree, 5.0)
    assert within
    np.testing.assert_array_equal(flat(same), flat(tree))
    np.testing.assert_array_equal(flat(clip(tree, jnp.inf)[0]), flat(tree))
    assert not flat(clip(tree, 0.0)[0]).any()
    for bad in (jnp.nan, jnp.inf):
        rejected, within = clip({"a": jnp.array([1.0, bad])}, 1.0)
        assert not flat(rejected).any()
        assert not within
    zero, within = clip({"a": jnp.zeros(3)}, 1.0)
    assert within
    assert not flat(zero).any()


def test_clipping_comes_after_decoding():
    """A channel that sends ten times too much cannot raise the sensitivity."""
    plain = ffm.channels.identity()
    loud = plain._replace(
        decode=lambda payload: jax.tree.map(lambda x: 1e4 * x, payload)
    )
    norm = 1e-3
    state, _ = run(private(norm=norm), rounds=1, uplink=loud)
    delta, _ = make_trees()
    assert np.linalg.norm(flat(state.delta) - flat(delta)) <= norm * (1 + 1e-4)


@pytest.mark.parametrize(
    "noise",
    [independent(), binary_tree(4), banded(square_root_coefficients(3))],
    ids=["independent", "tree", "banded"],
)
def test_the_noise_of_a_run_is_the_mechanisms(noise):
    """Rate 0: only noise moves the model; its prefix sums have the variances of the
    mechanism, times (z S / m)^2.
    """
    delta, backbone = {"w": jnp.zeros((60, 50))}, ()
    task = ffm.Task(
        lambda delta, backbone, batch, key: (batch["x"] * jnp.sum(delta["w"]), {})
    )
    algorithm = dp_fedavg(
        task,
        optax.sgd(0.0),
        noise=noise,
        noise_multiplier=2.0,
        clip_norm=0.5,
        local_steps=1,
        batch_size=4,
    )
    population = ffm.Population.from_clients([{"x": np.ones(3, np.float32)}] * 5)
    one = ffm.Simulator(algorithm, population, backbone=backbone, cohort_size=5)
    state, strategy = one.init(delta), noise.strategy(8)
    found = []
    for _ in range(8):
        state, _ = one.run(state, 1)
        found.append(float(np.var(np.asarray(state.delta["w"]))))
    if strategy.shape[0] == 8:
        prefix = np.tril(np.ones((8, 8))) @ np.linalg.inv(strategy)
        expected = (prefix**2).sum(axis=1)
    else:  # trees of four: finished ones stay in the model
        expected = np.array([1, 1, 2, 1, 2, 2, 3, 2])
    np.testing.assert_allclose(
        np.array(found) / (2.0 * 0.5 / 5) ** 2, expected, rtol=6 * np.sqrt(2 / 3000)
    )


def test_the_clip_norm_settles_where_the_quantile_is():
    _, norms = updates_by_hand(1.0)
    adaptive = AdaptiveClip(quantile=0.5, rate=0.5, count_noise=1e-6)
    _, metrics = run(
        private(norm=0.01, rate=0.05, adaptive=adaptive, server=optax.sgd(0.0)),
        rounds=60,
    )
    low, high = np.sort(norms)[N // 2 - 1 : N // 2 + 1]
    assert low * 0.999 <= metrics["clip_norm"][-1] <= high * 1.3
    assert np.mean(metrics["within_clip"][-20:]) == pytest.approx(0.5, abs=0.1)
    one, two = metrics["clip_norm"][10:12]
    assert two == pytest.approx(
        one * np.exp(-0.5 * (metrics["within_clip"][10] - 0.5)), rel=1e-4
    )
    # With the share at the quantile the norm stays.
    assert np.exp(-0.5 * (0.5 - 0.5)) == 1.0


def test_an_adaptive_clip_pays_for_its_count():
    assert update_noise(1.0, 5.0) == pytest.approx((1 - 0.01) ** -0.5)
    assert update_noise(0.0, 5.0) == 0
    with pytest.raises(ValueError, match="count_noise > 1"):
        update_noise(2.0, 0.9)


def test_impossible_configurations():
    for wrong, message in [
        ({"norm": 0.0}, "clip_norm > 0"),
        ({"multiplier": -1.0}, "noise_multiplier >= 0"),
        ({"norm": np.inf, "multiplier": 1.0}, "bounds nothing"),
        ({"noise": binary_tree(4), "adaptive": AdaptiveClip()}, "independent noise"),
    ]:
        with pytest.raises(ValueError, match=message):
            private(**wrong)


def test_poisson_cohorts_and_empty_ones():
    """An empty cohort adds noise only, and no 0/0."""
    state, metrics = run(
        private(multiplier=1.0),
        rounds=6,
        sampler=samplers.poisson(N, 0.15),
        cohort_size=1,
    )
    assert (metrics["clients"] == 0).any()
    assert np.isfinite(flat(state.delta)).all()
