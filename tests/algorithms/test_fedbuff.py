"""FedBuff: FedAvg without staleness, the event log replayed by a plain loop, and the
bytes of a version.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import SIZES, make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.fedbuff import fedbuff, polynomial_staleness
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.population import samplers
from fedjax_fm.systems import Schedule, asynchronous, client_seconds, log_normal_profile

TASK, N, RATE, STEPS = ffm.Task(mlp_loss), len(SIZES), 0.05, 3
HOW = {"local_steps": STEPS, "batch_size": 16}


def run(algorithm, rounds, cohort_size, **how):
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients())
    one = ffm.Simulator(
        algorithm,
        population,
        backbone=backbone,
        cohort_size=cohort_size,
        **({"devices": 2} | how),
    )
    return one.run(one.init(delta), rounds)


def close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), a, b
    )


def trained(delta, client):
    _, backbone = make_trees()
    batch = jax.tree.map(jnp.asarray, make_clients()[client])

    def loss(d):
        return jnp.mean(mlp_loss(d, backbone, batch, None)[0])

    for _ in range(STEPS):
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, jax.grad(loss)(delta))
    return delta


def test_without_staleness_it_is_fedavg():
    ids = np.array([[0, 3, 5], [2, 6, 7], [1, 0, 4]], np.int32)
    rounds = np.arange(3, dtype=np.int32)[:, None]
    schedule = Schedule(
        ids=ids,
        versions=np.broadcast_to(rounds, (3, 3)),
        started=rounds + np.zeros((3, 3)),
        arrived=rounds + np.ones((3, 3)),
    )
    assert not schedule.staleness.any()
    server = optax.sgd(0.8, momentum=0.5)
    algorithm = fedbuff(TASK, optax.sgd(RATE), server, schedule=schedule, **HOW)
    found, metrics = run(algorithm, 3, 3)
    (exchange,) = ffm.fedavg(TASK, optax.sgd(RATE), server, **HOW).exchanges
    inner = exchange.client
    uniform = exchange._replace(
        client=lambda *a: lambda *b: inner(*a)(*b)._replace(weight=jnp.float32(1)),
        reduce=weighted_mean(),
    )
    plain = ffm.fedavg(TASK, optax.sgd(RATE), server, **HOW)._replace(
        exchanges=(uniform,)
    )
    sampler = algorithm.sampler(None, ffm.Setting(N, 3))
    expected, _ = run(plain, 3, 3, sampler=sampler)
    close(found.delta, expected.delta)
    np.testing.assert_allclose(metrics["seconds"], [1, 2, 3])


@pytest.fixture(scope="module")
def log():
    profile = log_normal_profile(N, 2, spread=1.0)
    return asynchronous(
        profile,
        client_seconds(profile, np.full(N, 3), 64, 64),
        rounds=8,
        buffer_size=2,
        concurrency=4,
        seed=1,
    )


@pytest.mark.parametrize(
    "layout", [{}, {"devices": 1, "block_size": 1}], ids=["two devices", "one"]
)
def test_the_event_log_replays(log, layout):
    assert log.staleness.max() >= 2
    algorithm = fedbuff(TASK, optax.sgd(RATE), optax.sgd(0.7), schedule=log, **HOW)
    state, metrics = run(algorithm, len(log.ids), 2, **layout)
    delta, _ = make_trees()
    versions = [delta]
    for ids, seen, late in zip(log.ids, log.versions, log.staleness, strict=True):
        total = jax.tree.map(jnp.zeros_like, delta)
        for k, version, age in zip(ids, seen, late, strict=True):
            start = versions[version]
            update = jax.tree.map(lambda a, b: a - b, start, trained(start, k))
            total = jax.tree.map(
                lambda t, u, age=age: t + u / np.sqrt(1 + age), total, update
            )
        versions.append(jax.tree.map(lambda w, t: w - 0.7 * t / 2, versions[-1], total))
    close(state.delta, versions[-1])
    np.testing.assert_allclose(
        metrics["staleness"], log.staleness.mean(axis=1), rtol=1e-6
    )
    np.testing.assert_allclose(metrics["seconds"], log.seconds, rtol=1e-6)
    # A client fetches one version, not the server's history.
    assert (metrics["downlink_bytes"] == 2 * 4 * (12 + 4)).all()
    assert (metrics["uplink_bytes"] == 2 * 4 * (12 + 4)).all()


def test_behind_the_end_of_the_log_nobody_arrives(log):
    algorithm = fedbuff(TASK, optax.sgd(RATE), schedule=log, **HOW)
    state, metrics = run(algorithm, len(log.ids) + 2, 2)
    assert metrics["clients"].tolist() == [2] * 8 + [0, 0]
    assert np.isfinite(jax.tree.leaves(state.delta)[0]).all()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"cohort_size": 3}, "expected cohort_size=2"),
        ({"sampler": samplers.uniform(N, 2)}, "expected no sampler"),
    ],
)
def test_the_log_alone_says_who_takes_part(log, how, said):
    algorithm = fedbuff(TASK, optax.sgd(RATE), schedule=log, **HOW)
    with pytest.raises(ValueError, match=said):
        run(algorithm, 1, **({"cohort_size": 2} | how))


def test_staleness_weights():
    weight = polynomial_staleness()
    np.testing.assert_allclose(weight(jnp.array([0.0, 3.0])), [1.0, 0.5])
    assert polynomial_staleness(0.0)(jnp.float32(9)) == 1
    assert samplers.uniform(3, 1).law is not None
