"""The virtual clock: every event log obeys the rules, counted again from its own times."""

import itertools

import jax
import numpy as np
import pytest

from fedjax_fm.population import samplers
from fedjax_fm.systems import (
    Profile,
    asynchronous,
    client_seconds,
    log_normal_profile,
    synchronous_seconds,
)

N = 30


def profile(**how):
    return log_normal_profile(N, 0, **how)


def seconds_of(p):
    return client_seconds(p, np.full(N, 5), bytes_down=100_000, bytes_up=20_000)


@pytest.mark.parametrize(
    ("buffer_size", "concurrency"), [(4, 8), (1, 1), (8, 8), (3, 20)]
)
@pytest.mark.parametrize("offline", [False, True])
def test_an_event_log_obeys_the_rules(buffer_size, concurrency, offline):
    p = profile()
    if offline:
        online = np.random.default_rng(1).random((N, 6)) < 0.5
        online[:, 0] |= ~online.any(axis=1)
        p = p._replace(online=online, period=0.5)
    seconds = seconds_of(p)
    log = asynchronous(
        p, seconds, rounds=40, buffer_size=buffer_size, concurrency=concurrency, seed=3
    )
    assert log.ids.shape == (40, buffer_size)
    flat = log.arrived.reshape(-1)
    assert (np.diff(flat) >= 0).all()  # events in order of time
    np.testing.assert_allclose(log.arrived - log.started, seconds[log.ids], rtol=1e-9)
    # The version of a start is the number of updates until then; staleness is what came
    # after, and never negative.
    versions = (log.seconds[None, None, :] <= log.started[..., None]).sum(axis=-1)
    np.testing.assert_array_equal(log.versions, versions)
    assert (log.staleness >= 0).all()
    for row in log.ids:
        assert len(set(row.tolist())) == buffer_size
    # Nobody is at work twice, and at most `concurrency` are at work at a time.
    events = sorted(
        zip(log.ids.reshape(-1).tolist(), log.started.reshape(-1), flat, strict=True)
    )
    for (a, _, end), (b, begin, _) in itertools.pairwise(events):
        assert a != b or begin >= end
    middle = flat[len(flat) // 2]
    assert ((log.started < middle) & (log.arrived > middle)).sum() <= concurrency
    if offline:
        period = (log.started // p.period).astype(int) % 6
        assert p.online[log.ids, period].all()
    same = asynchronous(
        p, seconds, rounds=40, buffer_size=buffer_size, concurrency=concurrency, seed=3
    )
    np.testing.assert_array_equal(log.ids, same.ids)


def test_clients_that_are_all_alike():
    p = Profile(*(np.full(N, x) for x in (1.0, 1e6, 1e6, 0.0)))
    log = asynchronous(
        p, seconds_of(p), rounds=10, buffer_size=1, concurrency=1, seed=0
    )
    assert not log.staleness.any()
    log = asynchronous(
        p, seconds_of(p), rounds=10, buffer_size=1, concurrency=3, seed=0
    )
    # Three arrive at each instant and three start, with all of its updates: the second
    # and third are that late.
    assert log.staleness.reshape(-1).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_seconds_add_up():
    p = Profile(*(np.array([x]) for x in (0.5, 1000.0, 200.0, 0.1)))
    assert client_seconds(p, np.array([4]), 5000, 1000).tolist() == [5 + 5 + 0.2 + 2]


def test_a_synchronous_round_waits_for_the_slowest():
    seconds = np.arange(1.0, N + 1)
    ends = synchronous_seconds(samplers.fixed([3, 7]), 0, 4, seconds)
    np.testing.assert_allclose(ends, [8, 16, 24, 32])
    sampler = samplers.uniform(N, 5)
    ends = synchronous_seconds(sampler, 1, 6, seconds)
    assert (np.diff(ends) >= 5).all()
    assert (np.diff(ends, prepend=0) <= N).all()


def test_cohorts_are_those_of_the_run():
    import jax.numpy as jnp
    import optax

    import fedjax_fm as ffm

    population = ffm.Population.from_clients(
        [{"x": np.full(2, k, np.float32)} for k in range(N)]
    )
    task = ffm.Task(
        lambda delta, backbone, batch, key: (jnp.exp2(batch["x"]) + 0 * delta, {})
    )
    one = ffm.Simulator(
        ffm.fedavg(task, optax.sgd(0.0), local_steps=1, batch_size=2),
        population,
        cohort_size=3,
        seed=9,
    )
    _, metrics = one.run(one.init(jnp.float32(0)), 4)
    # The loss is the mean of 2^id: its binary digits are the cohort.
    slowest = [float(2 ** int(np.log2(3 * loss))) for loss in metrics["loss"]]
    ends = synchronous_seconds(samplers.uniform(N, 3), 9, 4, 2.0 ** np.arange(N))
    np.testing.assert_allclose(np.diff(ends, prepend=0), slowest)


def test_impossible_clocks():
    p = profile()
    with pytest.raises(ValueError, match="concurrency \\+ buffer_size <= 30"):
        asynchronous(p, seconds_of(p), rounds=2, buffer_size=20, concurrency=20, seed=0)
    with pytest.raises(ValueError, match="expected up"):
        p._replace(up=np.zeros(N)).checked()
    with pytest.raises(ValueError, match="a period for every client"):
        p._replace(online=np.zeros((N, 3), bool)).checked()
    assert jax.devices()
