"""What every sampler promises, and what each refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.population import samplers, traces

N, COHORT = 100, 7
TRACE = traces.diurnal(
    N, 10, mean=0.05, amplitude=0.05, seed=1
)  # rounds with fewer than COHORT clients occur
WEIGHTS = np.where(np.arange(N) % 3 == 0, 0.0, np.arange(N))

SAMPLERS = {
    "uniform": lambda: samplers.uniform(N, COHORT),
    "uniform of few": lambda: samplers.uniform(10, COHORT),
    "uniform of all": lambda: samplers.uniform(N, N),
    "poisson": lambda: samplers.poisson(N, 0.05),
    "poisson of few": lambda: samplers.poisson(10, 0.5),
    "poisson of all": lambda: samplers.poisson(N, 1.0),
    "weighted": lambda: samplers.weighted(WEIGHTS, COHORT),
    "weighted, all positive": lambda: samplers.weighted(
        WEIGHTS, np.count_nonzero(WEIGHTS)
    ),
    "fixed": lambda: samplers.fixed([3, 99, 0]),
    "cyclic": lambda: samplers.cyclic(N, COHORT),
    "cyclic, shuffled": lambda: samplers.cyclic(N, COHORT, shuffle=True),
    "cyclic, one block": lambda: samplers.cyclic(10, 10, shuffle=True),
    "available": lambda: samplers.available(N, COHORT, TRACE),
    "available, function": lambda: samplers.available(
        N, COHORT, lambda t, key: jnp.asarray(TRACE)[t % 10]
    ),
}
NOT_RANDOM = (
    "fixed",
    "cyclic",
    "uniform of all",
    "poisson of all",
    "cyclic, one block",
    "weighted, all positive",
)
ROUNDS = 40


def cohorts(sampler, seed=0, rounds=ROUNDS):
    """(ids i32[rounds, capacity], n_active i32[rounds]) as the engine draws them: a
    loop inside one program.
    """

    def one(state, key):
        ids, n_active, state = sampler.draw(state, key)
        return state, (ids, n_active)

    keys = jax.random.split(jax.random.key(seed), rounds)
    return jax.tree.map(
        np.asarray, jax.jit(lambda: jax.lax.scan(one, sampler.init(), keys)[1])()
    )


def active(ids, n_active):
    return [row[:n].tolist() for row, n in zip(ids, n_active, strict=True)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_cohort_is_distinct_clients_of_the_population(name):
    sampler = SAMPLERS[name]()
    ids, n_active = cohorts(sampler)
    assert ids.shape == (ROUNDS, sampler.capacity)
    assert ids.dtype == n_active.dtype == np.int32
    assert 0 <= ids.min() <= ids.max() < N  # those past n_active are read, too
    assert 0 <= n_active.min() <= n_active.max() <= sampler.capacity
    assert all(len(set(cohort)) == len(cohort) for cohort in active(ids, n_active))


@pytest.mark.parametrize("name", SAMPLERS)
def test_jit_equals_eager_and_the_key_decides(name):
    sampler = SAMPLERS[name]()
    ids, n_active = cohorts(sampler, rounds=3)
    state = sampler.init()
    for t, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        eager_ids, eager_n, state = sampler.draw(state, key)
        np.testing.assert_array_equal(eager_ids, ids[t])
        assert int(eager_n) == n_active[t]
    again, other = (
        cohorts(SAMPLERS[name](), rounds=3),
        cohorts(sampler, seed=1, rounds=3),
    )
    np.testing.assert_array_equal(again[0], ids)
    same_sets = [set(c) for c in active(*other)] == [
        set(c) for c in active(ids, n_active)
    ]
    assert same_sets == (name in NOT_RANDOM)


def test_a_poisson_cohort_that_overflows_says_so_and_is_not_cut():
    roomy, tight = (
        samplers.poisson(50, 0.5, capacity=50),
        samplers.poisson(50, 0.5, capacity=20),
    )
    sizes, (ids, claimed) = cohorts(roomy)[1], cohorts(tight)
    np.testing.assert_array_equal(claimed, sizes)
    assert claimed.max() > tight.capacity == ids.shape[1]


def test_fixed_is_fixed():
    ids, n_active = cohorts(samplers.fixed(np.array([5, 1, 3])), rounds=3)
    assert active(ids, n_active) == [[5, 1, 3]] * 3


@pytest.mark.parametrize(("n", "size"), [(5, 2), (6, 3), (7, 7), (9, 1), (100, 33)])
def test_cyclic_visits_everyone_equally_often_at_any_time(n, size):
    ids, n_active = cohorts(samplers.cyclic(n, size), rounds=3 * n)
    assert (n_active == size).all()
    for rounds in range(1, 3 * n + 1):
        visits = np.bincount(ids[:rounds].reshape(-1), minlength=n)
        assert visits.sum() == rounds * size
        assert visits.max() - visits.min() <= 1
    assert ids[0].tolist() == list(range(size))


@pytest.mark.parametrize(("n", "size"), [(5, 2), (6, 3), (7, 7), (9, 1), (100, 33)])
def test_each_shuffled_pass_visits_everyone_once_in_a_new_order(n, size):
    blocks = -(-n // size)
    ids, n_active = cohorts(samplers.cyclic(n, size, shuffle=True), rounds=4 * blocks)
    passes = np.split(
        np.array([int(k) for cohort in active(ids, n_active) for k in cohort]), 4
    )
    assert all(sorted(order) == list(range(n)) for order in passes)
    assert len({tuple(order) for order in passes}) == 4
    np.testing.assert_array_equal(
        n_active, ([size] * (blocks - 1) + [n - size * (blocks - 1)]) * 4
    )


def test_available_draws_those_who_are_there_and_all_of_them_if_they_are_few():
    trace = TRACE.copy()
    trace[3] = False
    ids, n_active = cohorts(samplers.available(N, COHORT, trace))
    for t, cohort in enumerate(active(ids, n_active)):
        there = set(np.flatnonzero(trace[t % 10]).tolist())
        assert set(cohort) <= there
        assert len(cohort) == min(len(there), COHORT)
    assert n_active[3] == n_active[13] == 0
    assert 0 < sorted(set(n_active.tolist()))[1] < COHORT  # the case of a few occurs


def test_a_trace_with_nobody_ever():
    for trace in (np.zeros((2, N), bool), lambda t, key: jnp.zeros(N, bool)):
        assert cohorts(samplers.available(N, COHORT, trace))[1].tolist() == [0] * ROUNDS


@pytest.mark.parametrize("n", [30, 200])
def test_an_array_and_the_function_that_reads_it_draw_the_same(n):
    trace = traces.markov(n, 6, mean_on=2.0, mean_off=3.0)
    a = cohorts(samplers.available(n, 9, trace))
    b = cohorts(samplers.available(n, 9, lambda t, key: jnp.asarray(trace)[t % 6]))
    assert active(*a) == active(*b)


def test_a_trace_function_sees_the_round_and_a_new_key_each_round():
    seen = samplers.available(
        N, N, lambda t, key: (jnp.arange(N) < t) | (jax.random.uniform(key, (N,)) < 0.5)
    )
    ids, n_active = cohorts(seen)
    first, second = (set(cohort) for cohort in active(ids, n_active)[:2])
    assert first != second
    assert all(
        set(range(t)) <= set(cohort) for t, cohort in enumerate(active(ids, n_active))
    )


def test_a_trace_function_that_draws_does_not_share_bits_with_the_choice():
    """Were one key used for both, who is there and who of them is chosen would be related."""
    sampler = samplers.available(
        8, 1, lambda t, key: jax.random.bits(key, (64,), jnp.uint32)[:8] >> 1 < 2**30
    )
    chosen = cohorts(sampler, rounds=4000)
    counts = np.bincount(chosen[0][chosen[1] > 0, 0], minlength=8)
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: samplers.uniform(5, 6),
            "1 <= cohort_size <= 5, the number of clients.*cohort_size=6",
        ),
        (lambda: samplers.uniform(5, 0), "cohort_size=0"),
        (lambda: samplers.uniform(5, 2.0), "cohort_size=2.0"),
        (lambda: samplers.uniform(True, 1), "n_clients=True"),
        (lambda: samplers.uniform(2**31, 1), "n_clients=2147483648"),
        (lambda: samplers.poisson(0, 0.5), "n_clients=0"),
        (lambda: samplers.poisson(5, 0.0), r"0 < rate <= 1.*rate=0\.0.*m / n_clients"),
        (lambda: samplers.poisson(5, 1.1), r"rate=1\.1"),
        (lambda: samplers.poisson(5, NAN), "rate=nan"),
        (
            lambda: samplers.poisson(5, 0.5, capacity=6),
            "1 <= capacity <= 5.*capacity=6",
        ),
        (lambda: samplers.poisson(5, 0.5, capacity=0), "capacity=0"),
        (
            lambda: samplers.weighted([1.0, 0.0, 2.0], 3),
            "<= 2, the number of positive weights among 3.*cohort_size=3",
        ),
        (lambda: samplers.weighted([0.0, 0.0], 1), "cohort_size=1"),
        (
            lambda: samplers.weighted([1.0, -1.0], 1),
            r"weights\[1\]=-1\.0.*leave it out",
        ),
        (lambda: samplers.weighted([NAN, 1.0], 1), r"weights\[0\]=nan"),
        (lambda: samplers.weighted([1.0, np.inf], 1), r"weights\[1\]=inf"),
        (lambda: samplers.weighted([[1.0]], 1), r"\[n_clients\].*shape \(1, 1\)"),
        (lambda: samplers.weighted(["many"], 1), "many"),
        (lambda: samplers.fixed([]), r"shape \(0,\)"),
        (lambda: samplers.fixed([0.5]), "float64"),
        (lambda: samplers.fixed([1, -2]), "id -2.*count from 0"),
        (lambda: samplers.fixed([1, 2, 2]), "2 times id 2"),
        (lambda: samplers.cyclic(3, 4), "cohort_size=4"),
        (lambda: samplers.cyclic(3, 2, shuffle=1), "shuffle=1"),
        (lambda: samplers.available(3, 4, np.ones((1, 3), bool)), "cohort_size=4"),
        (
            lambda: samplers.available(3, 2, np.ones((3, 4), bool)),
            r"bool\[rounds >= 1, 3\].*\(3, 4\).*transpose",
        ),
        (lambda: samplers.available(3, 2, np.ones((0, 3), bool)), r"\(0, 3\)"),
        (lambda: samplers.available(3, 2, np.ones((2, 3))), "float64.*trace > 0"),
        (
            lambda: samplers.available(3, 2, lambda t, key: jnp.ones(3)),
            r"bool\[3\].*float32",
        ),
        (
            lambda: samplers.available(3, 2, lambda t, key: jnp.ones(4, bool)),
            r"bool\[3\].*\(4,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
