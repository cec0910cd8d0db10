"""FedPM's exact invariants (Isik et al. 2022), on a loss that is linear in the mask, so that
scores have a closed form.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.algorithms.fedpm import (
    fedpm,
    masked,
    sample_masks,
    signed_constants,
    threshold_masks,
)
from fedjax_fm.channels.range_coder import range_decode, range_encode
from fedjax_fm.experiments.fedpm.bits import bits_of
from fedjax_fm.types import Channel, Sampler

D = 5000
SLOPES = (0.0, 3.0, -2.0, 1.0)  # of the clients: the loss is slope * sum(w * m)
WEIGHTS = {
    "a": np.full((50, 60), 0.5, np.float32),
    "b": np.full(2000, -0.5, np.float32),
}
CLIENTS = [
    {"slope": np.full(2 + k, slope, np.float32)} for k, slope in enumerate(SLOPES)
]


def linear(weights, backbone, batch, key):
    return batch["slope"] * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(weights)), {}


def theta_of(p):
    return jax.tree.map(lambda w: np.full_like(w, p), WEIGHTS)


def recorder():
    """Carries everything and keeps each client's last upload in the store of channel states."""
    return Channel(
        init=lambda shapes: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
        encode=lambda state, tree, key: (tree, tree),
        decode=lambda payload: payload,
        bits=lambda payload: sum(leaf.size for leaf in jax.tree.leaves(payload)),
    )


@functools.cache
def simulate(rate=0.0, **how):
    """`rounds(n) -> [(state, metrics, masks of all clients {name: bool[K, ...]}), ...]`
    of one compiled simulator.
    """
    options = {"softening": 0.0, "local_steps": 1, "batch_size": 8} | how
    simulator_options = {
        k: options.pop(k) for k in ("sampler", "uplink") if k in options
    }
    simulator = ffm.Simulator(
        fedpm(ffm.Task(linear), optax.sgd(rate), **options),
        ffm.Population.from_clients(CLIENTS),
        backbone=WEIGHTS,
        cohort_size=len(CLIENTS),
        devices=1,
        **{"uplink": recorder()} | simulator_options,
    )

    def rounds(n, p):
        state, found = simulator.init(theta_of(p)), []
        for _ in range(n):
            state, metrics = simulator.run(state, 1)
            (masks,) = state.carry.uplinks
            found.append((state, metrics, jax.tree.map(np.asarray, masks)))
        return found

    return rounds


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def sigmoid(s):
    return 1 / (1 + np.exp(-s))


def h2(p):
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def trained(p, rate, sign):
    """sigma(s_k) of every client after one step: ds = slope * w * p (1 - p), the
    straight-through gradient.
    """
    return sigmoid(
        np.log(p / (1 - p)) - rate * np.array(SLOPES) * sign * 0.5 * p * (1 - p)
    )


def test_estimate_is_unbiased_with_the_stated_variance():
    """z-tests over entries: E theta' = mean sigma(s_k); E ||theta' - mean||^2 = sum of
    sigma (1 - sigma) / K^2.
    """
    p, rate, n = 0.3, 8.0, len(SLOPES)
    ((state, _, _),) = simulate(rate=rate)(1, p)
    assert np.ptp(trained(p, rate, 1)) > 0.5  # the clients do differ
    for name, sign in (("a", 1), ("b", -1)):
        sigma = trained(p, rate, sign)
        found = np.asarray(state.delta[name], np.float64).ravel()
        variance = np.sum(sigma * (1 - sigma)) / n**2
        assert abs(found.mean() - sigma.mean()) < 4 * math.sqrt(variance / found.size)
        spread = (found - sigma.mean()) ** 2
        assert abs(spread.mean() - variance) < 4 * spread.std() / math.sqrt(found.size)
        assert variance < 1 / (4 * n)


def test_variance_is_largest_at_one_half():
    n = len(SLOPES)
    ((state, _, _),) = simulate()(1, 0.5)
    spread = (flat(state.delta).astype(np.float64) - 0.5) ** 2
    assert abs(spread.mean() - 1 / (4 * n)) < 4 * spread.std() / math.sqrt(D)


def test_theta_is_the_mean_of_the_masks_and_weights_never_move():
    ((state, metrics, masks),) = simulate(rate=8.0)(1, 0.3)
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(masks))
    jax.tree.map(
        lambda t, m: np.testing.assert_allclose(t, m.mean(0), atol=1e-7),
        state.delta,
        masks,
    )
    shares = [
        flat(jax.tree.map(lambda m, k=k: m[k], masks)).mean()
        for k in range(len(CLIENTS))
    ]
    np.testing.assert_allclose(metrics["density"][0], np.mean(shares), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["bits_per_parameter"][0], np.mean([h2(p) for p in shares]), rtol=1e-5
    )
    assert metrics["bits_per_parameter"][0] < 1


def test_frozen_weights_are_bit_identical_after_training():
    before = jax.tree.map(np.copy, WEIGHTS)
    algorithm = fedpm(ffm.Task(linear), optax.adam(0.3), epochs=2, batch_size=2)
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(CLIENTS),
        backbone=WEIGHTS,
        cohort_size=2,
        devices=1,
    )
    simulator.run(simulator.init(theta_of(0.5)), 3)
    jax.tree.map(np.testing.assert_array_equal, before, WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, before, simulator.backbone)


@pytest.mark.parametrize(
    ("how", "windows"),
    [
        ({}, [1, 1]),
        ({"reset_every": 2}, [1, 2, 1, 2]),
        ({"reset_every": None}, [1, 2, 3, 4]),
    ],
)
def test_mode_is_the_mean_of_all_masks_since_the_reset(how, windows):
    found = simulate(**how)(len(windows), 0.4)
    for last, window in enumerate(windows):
        masks = np.concatenate(
            [found[i][2]["b"] for i in range(last + 1 - window, last + 1)]
        )
        assert len(masks) == window * len(CLIENTS)
        np.testing.assert_allclose(found[last][0].delta["b"], masks.mean(0), atol=1e-6)


def test_prior_and_softening_in_closed_form():
    ((state, _, masks),) = simulate(prior=3.0)(1, 0.4)
    alpha, beta = 3 + masks["b"].sum(0), 3 + (~masks["b"]).sum(0)
    np.testing.assert_allclose(
        state.delta["b"], (alpha - 1) / (alpha + beta - 2), atol=1e-6
    )
    ((state, _, masks),) = simulate(softening=0.01)(1, 0.4)
    p = masks["b"].mean(0)
    np.testing.assert_allclose(state.delta["b"], p + 0.01 * (1 - 2 * p), atol=1e-6)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_entries_stay_and_cost_nothing(p):
    """The scores are infinite, their gradients zero."""
    for state, metrics, masks in simulate(rate=8.0)(2, p):
        assert (flat(masks) == p).all()
        assert (flat(state.delta) == p).all()
        assert metrics["bits_per_parameter"][0] == 0
        assert metrics["loss"][0] == pytest.approx(
            p * flat(WEIGHTS).sum() * np.repeat(SLOPES, [2, 3, 4, 5]).mean(), rel=1e-4
        )


def test_an_arithmetic_coder_reaches_the_entropy():
    """Real bits: lossless, within two of the entropy."""
    ((_, metrics, masks),) = simulate(rate=8.0)(1, 0.3)
    spent = []
    for k in range(len(CLIENTS)):
        mask = flat(jax.tree.map(lambda m, k=k: m[k], masks))
        counts = np.array([D - mask.sum(), mask.sum()])
        message = range_encode(mask.astype(int), counts)
        np.testing.assert_array_equal(range_decode(message, counts, D), mask)
        assert 0 <= message.n_bits - D * h2(mask.mean()) <= 2
        spent.append(message.n_bits / D)
    assert np.mean(spent) == pytest.approx(metrics["bits_per_parameter"][0], abs=2 / D)


def test_bits_that_the_study_reports():
    """Real lengths against sums of logarithms: one frequency, one a layer, and theta
    that both ends hold.
    """
    rng = np.random.default_rng(0)
    theta = {"a": rng.choice([0.05, 0.5], (40, 50)), "b": rng.choice([0.5, 0.98], 3000)}
    mask = {name: rng.random(p.shape) < p for name, p in theta.items()}
    found = bits_of(mask, theta)
    flags, p = flat(mask), flat(theta)
    d = flags.size
    given = -np.log2(np.where(flags, p, 1 - p)).sum()
    assert (
        0 <= found["coded given theta"] * d - given <= 3 * 2 + 1
    )  # three values of theta; 2^-20 of rounding
    by_layer = sum(leaf.size * h2(leaf.mean()) for leaf in mask.values())
    for name, entropy, models in (
        ("", d * h2(flags.mean()), 1),
        (" by layer", by_layer, 2),
    ):
        assert found[f"entropy{name}"] * d == pytest.approx(entropy + 32 * models)
        assert 0 <= (found[f"coded{name}"] - found[f"entropy{name}"]) * d <= 2 * models
    assert given < by_layer < d * h2(flags.mean())


def test_fair_coins_cost_one_bit_and_no_others_do():
    _, metrics, masks = simulate()(1, 0.5)[0]
    shares = [
        flat(jax.tree.map(lambda m, k=k: m[k], masks)).mean()
        for k in range(len(CLIENTS))
    ]
    assert 0.999 < metrics["bits_per_parameter"][0] <= 1
    assert all(h2(p) == 1 if p == 0.5 else h2(p) < 1 for p in shares)


def test_bytes_both_ways():
    (_, metrics, _), *_ = simulate(uplink=None)(1, 0.5)
    n = len(CLIENTS)
    assert metrics["uplink_bytes"][0] == n * sum(
        -(-leaf.size // 8) for leaf in WEIGHTS.values()
    )
    assert metrics["downlink_bytes"][0] == n * 4 * D


def test_a_round_without_clients_keeps_theta():
    nobody = Sampler(
        init=tuple,
        draw=lambda state, key: (jnp.zeros(4, jnp.int32), jnp.int32(0), state),
        capacity=4,
    )
    ((state, metrics, _),) = simulate(sampler=nobody)(1, 0.25)
    assert (flat(state.delta) == 0.25).all()
    assert metrics["clients"][0] == 0


def test_part_of_a_backbone_can_be_masked():
    """`weights` picks the random part; the loss sees the rest unmasked."""

    def loss(weights, backbone, batch, key):
        return batch["slope"] * (jnp.sum(weights["a"]) + backbone["shift"]), {}

    algorithm = fedpm(
        ffm.Task(loss),
        optax.sgd(0.0),
        local_steps=1,
        batch_size=8,
        weights=lambda backbone: {"a": backbone["a"]},
    )
    backbone = {"a": WEIGHTS["a"], "shift": np.float32(7)}
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(CLIENTS[1:2]),
        backbone=backbone,
        cohort_size=1,
        devices=1,
    )
    _, metrics = simulator.run(simulator.init({"a": np.ones((50, 60), np.float32)}), 1)
    assert metrics["loss"][0] == pytest.approx(3 * (1500 + 7), rel=1e-5)


def test_masks_for_the_test():
    theta = {"x": jnp.array([0.0, 0.2, 0.5, 0.7, 1.0])}
    np.testing.assert_array_equal(
        threshold_masks(theta)["x"], [False, False, False, True, True]
    )
    draws = np.stack([sample_masks(theta, jax.random.key(i))["x"] for i in range(400)])
    assert not draws[:, 0].any()
    assert draws[:, 4].all()
    np.testing.assert_allclose(draws.mean(0), theta["x"], atol=4 * 0.5 / 20)
    np.testing.assert_array_equal(
        masked({"x": jnp.arange(3.0)}, {"x": jnp.array([True, False, True])})["x"],
        [0, 0, 2],
    )


def test_random_weights_are_signed_constants_of_the_seed():
    shapes = {
        "dense": jax.ShapeDtypeStruct((64, 10), jnp.float32),
        "conv": jax.ShapeDtypeStruct((3, 3, 8, 4), "f4"),
    }
    weights = signed_constants(shapes, jax.random.key(1))
    np.testing.assert_allclose(np.abs(weights["dense"]), math.e / 8, rtol=1e-6)
    np.testing.assert_allclose(
        np.abs(weights["conv"]), math.e / math.sqrt(72), rtol=1e-6
    )
    assert abs(np.sign(weights["dense"]).mean()) < 4 / math.sqrt(640)
    again, other = (
        signed_constants(shapes, jax.random.key(1)),
        signed_constants(shapes, jax.random.key(2)),
    )
    jax.tree.map(np.testing.assert_array_equal, weights, again)
    assert (np.sign(weights["dense"]) != np.sign(other["dense"])).any()
    with pytest.raises(ValueError, match=r"shape \(5,\) has no fan-in"):
        signed_constants({"b": jnp.zeros(5)}, jax.random.key(0))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"prior": 0.5}, "prior=0.5"),
        ({"reset_every": 0}, "reset_every=0"),
        ({"softening": 0.5}, "softening=0.5"),
    ],
)
def test_impossible_settings_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        fedpm(ffm.Task(linear), optax.sgd(1.0), epochs=1, batch_size=1, **option)


def test_masks_must_fit_the_weights():
    with pytest.raises(
        ValueError, match=r"masks and random weights differ: a: .*\[3\].*\[2\]"
    ):
        masked({"a": jnp.ones(3)}, {"a": jnp.ones(2, bool)})
