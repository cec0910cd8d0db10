"""DP-SGD inside clients of FedAvg: clipped one by one, in microbatches, with noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm import privacy

SIZES = (8, 5, 3)


def loss(w, backbone, batch, key):
    error = batch["x"] @ w["a"] + w["b"] - batch["y"]
    return error**2 / 2, {}


TASK = ffm.Task(loss)
START = {"a": jnp.arange(3.0) / 5, "b": jnp.float32(0.1)}


def clients():
    random = np.random.default_rng(0)
    return [
        {
            "x": random.normal(size=(n, 3)).astype(np.float32),
            "y": 3 * random.normal(size=n).astype(np.float32),
        }
        for n in SIZES
    ]


def run(private, rounds=1, data=None, batch_size=4, start=START, task=TASK):
    method = ffm.fedavg(
        task, optax.sgd(0.1), epochs=1, batch_size=batch_size, example_privacy=private
    )
    population = ffm.Population.from_clients(clients() if data is None else data)
    n = population.n_clients
    simulator = ffm.Simulator(method, population, cohort_size=n, seed=0)
    state, _ = simulator.run(simulator.init(start), rounds)
    return state.delta


def same(one, other, atol=1e-6):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def private(**how):
    return privacy.ExamplePrivacy(**{"clip_norm": 0.5, "noise_multiplier": 0.7, **how})


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "microbatch", [pytest.param(1, marks=SLOW), 2, pytest.param(4, marks=SLOW)]
)
def test_microbatches_change_nothing(microbatch):
    same(run(private()), run(private(microbatch=microbatch)))


def test_a_bound_that_bounds_nothing_is_plain_fedavg():
    how = {"clip_norm": float("inf"), "noise_multiplier": 0.0, "microbatch": 2}
    same(run(None, rounds=2), run(private(**how), rounds=2))


def test_each_example_is_clipped_by_itself():
    """A loop over examples in numpy; one batch, so that no order matters."""
    (data,) = clients()[:1]
    total = {"a": np.zeros(3), "b": 0.0}
    for x, y in zip(data["x"].astype(float), data["y"].astype(float), strict=True):
        error = x @ np.asarray(START["a"]) + 0.1 - y
        gradient = np.append(error * x, error)
        gradient *= min(1, 0.5 / np.linalg.norm(gradient))
        total["a"] += gradient[:3] / 8
        total["b"] += gradient[3] / 8
    expected = {name: START[name] - 0.1 * total[name] for name in START}
    how = {"data": [data], "batch_size": 8}
    for microbatch in (None, 4):
        same(run(private(noise_multiplier=0.0, microbatch=microbatch), **how), expected)


def test_one_example_moves_the_sum_by_its_bound():
    (data,) = clients()[:1]
    other = {name: column.copy() for name, column in data.items()}
    other["x"][3], other["y"][3] = 1e4, -1e5
    how = {"batch_size": 8}
    quiet = private(noise_multiplier=0.0, microbatch=2)
    one, moved = (run(quiet, data=[own], **how) for own in (data, other))
    change = optax.tree.norm(jax.tree.map(jnp.subtract, one, moved))
    assert 0 < float(change) <= 0.1 * 2 * 0.5 / 8 * (1 + 1e-4)


@pytest.mark.parametrize("microbatch", [None, 2])
def test_the_noise_is_that_of_the_clip_over_the_examples(microbatch):
    """Gradients of zero: the step is the noise alone, of an odd batch, too."""

    def flat(w, backbone, batch, key):
        return 0.0 * batch["x"] * jnp.sum(w), {}

    start = jnp.zeros(40_000)
    data = [{"x": np.ones(3, np.float32)}]
    how = {"task": ffm.Task(flat), "start": start, "data": data}
    found = np.asarray(run(private(microbatch=microbatch), **how))
    expected = 0.1 * 0.7 * 0.5 / 3  # three examples in a batch of four
    assert np.std(found) == pytest.approx(expected, rel=0.02)
    assert abs(found.mean()) < 4 * expected / 200


def test_what_is_accounted_is_said():
    accounting = privacy.LocalAccounting(n_examples=3, rounds=2, delta=1e-3)
    method = ffm.fedavg(
        TASK, optax.sgd(0.1), epochs=2, batch_size=4,
        example_privacy=private(accounting=accounting),
    )  # fmt: skip
    spent = privacy.local_spent(0.7, accounting, batch_size=4, passes=2)
    assert method.privacy.mechanism.startswith(
        f"epsilon {spent.epsilon:.3g} at delta 0.001"
    )
    assert ffm.fedavg(TASK, optax.sgd(0.1), epochs=1, batch_size=4).privacy is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"microbatch": 3}, "divides batch_size=4, got microbatch=3"),
        ({"microbatch": 0}, "microbatch=0"),
        ({"microbatch": 8}, "microbatch=8"),
        ({"clip_norm": 0.0}, "clip_norm=0"),
        ({"clip_norm": float("inf")}, "bounds nothing"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run(private(**change))


def test_what_is_no_privacy_is_refused():
    with pytest.raises(TypeError, match=r"write privacy\.ExamplePrivacy"):
        run(0.5)
    weighted = ffm.Task(loss, lambda batch: batch["y"])
    with pytest.raises(ValueError, match="fedavg: each example counts the same"):
        run(private(), task=weighted)
