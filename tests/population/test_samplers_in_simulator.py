"""Every sampler through the engine, with a linear model in which client k trains the
k-th weight and no other.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.population import samplers

N = 12
TRACE = np.arange(N)[None] < np.array(
    [[2], [0], [9]]
)  # in round t mod 3 the first 2, nobody, the first 9

SAMPLERS = {
    "uniform": (samplers.uniform(N, 4), [4, 4, 4, 4, 4, 4]),
    "poisson": (samplers.poisson(N, 0.2), None),
    "weighted": (samplers.weighted(np.arange(N) > 4, 4), [4] * 6),
    "fixed": (samplers.fixed([7, 2, 5]), [3] * 6),
    "cyclic": (samplers.cyclic(N, 5), [5] * 6),
    "cyclic, shuffled": (samplers.cyclic(N, 5, shuffle=True), [5, 5, 2, 5, 5, 2]),
    "available": (samplers.available(N, 4, TRACE), [2, 0, 4, 2, 0, 4]),
    "available, function": (
        samplers.available(N, 4, lambda t, key: jnp.asarray(TRACE)[t % 3]),
        [2, 0, 4, 2, 0, 4],
    ),
}


def simulator_of(sampler, n_examples=2, **how):
    x = np.eye(N, dtype=np.float32)
    clients = [
        {"x": x[[k] * n_examples], "y": np.ones(n_examples, np.float32)}
        for k in range(N)
    ]

    def loss(delta, backbone, batch, key):
        return ((batch["x"] @ delta["w"] - batch["y"]) ** 2, {})

    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(0.1), epochs=1, batch_size=2)
    population = ffm.Population.from_clients(clients)
    return ffm.Simulator(
        algorithm, population, cohort_size=4, sampler=sampler, **{"devices": 2, **how}
    )


def one_by_one(simulator, rounds):
    """(ids that took part, metrics) of each round, seen from the weights that moved."""
    state, cohorts, all_metrics = simulator.init({"w": jnp.zeros(N)}), [], []
    for _ in range(rounds):
        before = np.asarray(state.delta["w"])
        state, metrics = simulator.run(state, 1)
        cohorts.append(
            set(np.flatnonzero(np.asarray(state.delta["w"]) != before).tolist())
        )
        all_metrics.append(metrics)
    return cohorts, all_metrics, state


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_engine_trains_whom_the_sampler_drew(name):
    sampler, sizes = SAMPLERS[name]
    simulator = simulator_of(sampler)
    cohorts, metrics, state = one_by_one(simulator, 6)
    clients = [int(m["clients"][0]) for m in metrics]
    assert [len(cohort) for cohort in cohorts] == clients
    assert sizes is None or clients == sizes
    assert [int(m["examples"][0]) for m in metrics] == [2 * n for n in clients]
    fused, together = simulator.run(
        simulator.init({"w": jnp.zeros(N)}), 6
    )  # the sampler's state rides in the loop
    np.testing.assert_array_equal(fused.delta["w"], state.delta["w"])
    assert together["clients"].tolist() == clients
    if name == "fixed":
        assert cohorts == [{2, 5, 7}] * 6
    if name == "cyclic":
        assert cohorts[:3] == [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}, {10, 11, 0, 1, 2}]
    if name == "cyclic, shuffled":
        assert set.union(*cohorts[:3]) == set.union(*cohorts[3:]) == set(range(N))
    if name == "weighted":
        assert all(min(cohort) > 4 for cohort in cohorts)
    if name.startswith("available"):
        assert all(
            cohort <= set(np.flatnonzero(TRACE[t % 3]).tolist())
            for t, cohort in enumerate(cohorts)
        )


@pytest.mark.parametrize("devices", [1, 2])
def test_a_round_that_nobody_comes_to_changes_nothing(devices):
    simulator = simulator_of(
        samplers.available(N, 4, np.zeros((1, N), bool)), devices=devices
    )
    start = {"w": jnp.arange(float(N))}
    state, metrics = simulator.run(simulator.init(start), 3)
    np.testing.assert_array_equal(state.delta["w"], start["w"])
    assert state.round == 3
    for name in ("clients", "examples", "uplink_bytes", "downlink_bytes"):
        assert metrics[name].tolist() == [0, 0, 0]
