"""SoteriaFL: DIANA without noise, what one example moves, epsilons by other accountants."""

import decimal
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from quadratics import FULL, START, TASK, D, distance, run, simulator
from scipy.special import logsumexp

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import cdp_sgd, diana, soteriafl
from fedjax_fm.privacy import LocalAccounting, local_spent

RATE = 0.2
NATURAL = channels.natural()
EXACT = channels.identity()
OPEN = {"clip_norm": math.inf, "noise_multiplier": 0.0, "batch_size": 4}
SAGA = {"estimator": "saga", "table_rows": 6, "index": "number"}


def make(channel=NATURAL, **how):
    return soteriafl(TASK, RATE, channel, **(OPEN | how))


def many(n_clients=3, n=6, seed=0):
    """Clients of several examples, numbered."""
    rng = np.random.default_rng(seed)
    return [
        {
            "a": rng.normal(size=(n, D)).astype(np.float32),
            "h": rng.uniform(0.5, 2, size=(n, D)).astype(np.float32),
            "number": np.arange(n, dtype=np.int32),
        }
        for _ in range(n_clients)
    ]


def optimum_of(clients):
    a, h = (np.concatenate([c[name] for c in clients]) for name in ("a", "h"))
    return (h * a).sum(0) / h.sum(0)


def test_without_noise_it_is_diana():
    found, _ = run(make(shift_rate=0.5), 6, cohort_size=4)
    expected, _ = run(
        diana(TASK, RATE, NATURAL, shift_rate=0.5, **FULL), 6, cohort_size=4
    )
    np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        found.carry.clients.shift, expected.carry.clients, rtol=1e-5, atol=1e-6
    )
    shifts = np.asarray(found.carry.clients.shift, np.float64)
    np.testing.assert_allclose(found.carry.server.shift, shifts.mean(0), atol=1e-5)


def test_without_shifts_it_is_cdp_sgd():
    found, _ = run(cdp_sgd(TASK, RATE, NATURAL, **OPEN), 4)
    expected, _ = run(diana(TASK, RATE, NATURAL, shift_rate=0.0, **FULL), 4)
    np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-5, atol=1e-6)


def test_the_shift_rate_of_the_paper():
    omega = 1 / 8
    one = simulator(make())
    before = one.init(START)
    after, _ = one.run(before, 1)
    gamma = math.sqrt((1 + 2 * omega) / (2 * (1 + omega) ** 3))
    sent = (START - np.asarray(after.delta)) / RATE  # the old shift is zero
    np.testing.assert_allclose(
        after.carry.server.shift, gamma * sent, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "how", [{}, {"estimator": "svrg", "snapshot_rate": 0.3}, SAGA], ids=str
)
def test_all_estimators_without_noise_on_all_data_are_gradient_descent(how):
    data = many()
    state, _ = run(make(EXACT, batch_size=8, **how), 3, clients=data, cohort_size=3)
    x = START.astype(np.float64)
    for _ in range(3):
        x = x - RATE * np.mean([(c["h"] * (x - c["a"])).mean(0) for c in data], axis=0)
    np.testing.assert_allclose(state.delta, x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "how", [{"estimator": "svrg", "snapshot_rate": 0.3}, SAGA], ids=str
)
def test_reduced_variance_reaches_the_optimum_where_sgd_stalls(how):
    """After 500 rounds with batches of two of six."""
    data = many()
    place = {"clients": data, "cohort_size": 3}
    found, _ = run(make(batch_size=2, **how), 500, **place)
    noisy, _ = run(make(batch_size=2), 500, **place)
    assert distance(found, optimum_of(data)) < 1e-4
    assert distance(noisy, optimum_of(data)) > 1e-2


def test_sagas_table_holds_the_newest_gradient_of_each_example():
    data = many(n_clients=1)
    one = simulator(make(EXACT, batch_size=2, **SAGA), clients=data, cohort_size=1)
    state = one.init(START)
    table = np.zeros((6, D))
    for _ in range(5):
        x = np.asarray(state.delta, np.float64)
        before = np.asarray(state.carry.clients.memory)[0]
        state, _ = one.run(state, 1)
        after = np.asarray(state.carry.clients.memory)[0]
        rows = np.flatnonzero(np.any(before != after, axis=1))
        assert len(rows) == 2
        here = (data[0]["h"] * (x - data[0]["a"]))[rows]
        estimate = (here - table[rows]).mean(0) + table.mean(0)
        np.testing.assert_allclose(
            state.delta, x - RATE * estimate, rtol=1e-3, atol=1e-5
        )
        table[rows] = here
        np.testing.assert_allclose(after, table, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"estimator": "svrg"}, SAGA], ids=str)
def test_one_example_moves_the_estimate_by_no_more_than_accounted(how):
    """It is replaced by one far on the other side; all other randomness stays."""
    norm, size, n = 0.5, 3, 6
    data, other = many(n_clients=1), many(n_clients=1)
    other[0]["a"][2] = -1e4 * np.sign(other[0]["a"][2])
    method = make(EXACT, clip_norm=norm, batch_size=size, shift_rate=0.0, **how)
    first = simulator(method, clients=data, cohort_size=1)
    first.init(START)
    second = first.with_population(ffm.Population.from_clients(other))
    moved = []
    for seed in range(8):
        found = []
        for one in (first, second):
            state, _ = one.run(one.init(START, seed=seed), 1)
            found.append((START - np.asarray(state.delta, np.float64)) / RATE)
        moved.append(np.linalg.norm(found[0] - found[1]))
    most = 2 * norm / size if how == {} else 4 * norm / size + 2 * norm / n
    assert max(moved) <= most * (1 + 1e-4)
    assert max(moved) > 0.2 * norm / size


def test_the_noise_has_the_deviation_that_is_accounted_for():
    """On the mean of three examples, in an estimate of 4000 entries; clipped to 0.5."""
    wide = 4000
    data = [
        {"a": np.full((3, wide), 5.0, np.float32), "h": np.ones((3, wide), np.float32)}
    ]
    population = ffm.Population.from_clients(data)
    method = make(EXACT, clip_norm=0.5, noise_multiplier=3.0, batch_size=8)
    one = ffm.Simulator(method, population, cohort_size=1, devices=1)
    state, _ = one.run(one.init(np.zeros(wide, np.float32)), 1)
    noisy = -np.asarray(state.delta, np.float64) / RATE
    assert noisy.std() == pytest.approx(3.0 * 0.5 / 3, rel=0.05)
    assert noisy.mean() == pytest.approx(
        -0.5 / np.sqrt(wide), abs=4 * 0.5 / np.sqrt(wide)
    )


# Privacy


def by_hand(z, rounds, delta, rate=1.0, sensitivity=2.0):
    """Epsilon by the theorems of the papers, over integer orders: a Gaussian's Rényi
    divergence, and theorem 27 of Wang et al. 2019 for sampling without replacement,
    whose differences are taken in 80 digits.
    """
    decimal.getcontext().prec = 80

    def gaussian(a):
        return a * sensitivity**2 / (2 * z**2)

    @functools.cache
    def log_difference(order):
        """Of the order-th difference at 0 of x -> exp((x - 1) eps(x))."""
        terms = [
            (-1) ** (order - i)
            * math.comb(order, i)
            * decimal.Decimal((i - 1) * gaussian(i)).exp()
            for i in range(order + 1)
        ]
        return float(sum(terms, decimal.Decimal(0)).ln())

    def log_term(a, j):
        if j == 2:
            found = min(4 * math.expm1(gaussian(2)), 2 * math.exp(gaussian(2)))
            found = math.log(found)
        else:
            low, high = 2 * (j // 2), 2 * -(-j // 2)
            found = math.log(4) + (log_difference(low) + log_difference(high)) / 2
            found = min(found, math.log(2) + (j - 1) * gaussian(j))
        return found + j * math.log(rate) + math.log(math.comb(a, j))

    def sampled(a):
        terms = [0.0, *(log_term(a, j) for j in range(2, a + 1))]
        return logsumexp(terms) / (a - 1)

    best = math.inf
    for a in range(2, 60):
        divergence = rounds * (gaussian(a) if rate == 1 else sampled(a))
        epsilon = divergence + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        best = min(best, epsilon)
    return best


def test_epsilon_of_whole_clients_by_two_other_accountants():
    accounting = LocalAccounting(n_examples=40, rounds=30, delta=1e-5)
    found = local_spent(20.0, accounting, batch_size=64)
    assert found.epsilon == pytest.approx(by_hand(20.0, 30, 1e-5), rel=0.01)
    exact = PLDAccountant().compose(SelfComposedDpEvent(GaussianDpEvent(10.0), 30))
    assert exact.get_epsilon(1e-5) <= found.epsilon <= 1.1 * exact.get_epsilon(1e-5)
    assert found.relation == "one example of one client replaced"


def test_epsilon_of_sampled_examples_by_the_theorem():
    accounting = LocalAccounting(n_examples=1000, rounds=100, delta=1e-5)
    found = local_spent(8.0, accounting, batch_size=50)
    assert found.epsilon == pytest.approx(by_hand(8.0, 100, 1e-5, rate=0.05), rel=1e-6)
    whole = local_spent(8.0, accounting, batch_size=1000)
    assert found.epsilon < 0.3 * whole.epsilon


def test_epsilon_of_the_other_estimators():
    accounting = LocalAccounting(n_examples=100, rounds=10, delta=1e-5)
    how = {"batch_size": 20}
    sgd, svrg, saga = (
        local_spent(30.0, accounting, estimator=name, **how).epsilon
        for name in ("sgd", "svrg", "saga")
    )
    assert sgd < svrg < saga
    assert saga == pytest.approx(by_hand(30.0, 10, 1e-5, sensitivity=4.4), rel=0.02)


def test_epsilon_knows_nothing_of_the_channel_and_is_reported():
    accounting = LocalAccounting(n_examples=6, rounds=4, delta=1e-5)
    how = {"clip_norm": 1.0, "noise_multiplier": 10.0, "batch_size": 3}
    reported = []
    for channel in (EXACT, channels.random_k(0.25)):
        method = make(channel, accounting=accounting, **how)
        one = simulator(method, clients=many(), cohort_size=3)
        state, metrics = one.run(one.init(START), 4)
        reported.append(metrics["epsilon"])
        assert "one example of one client replaced" in str(one)
        with pytest.raises(ValueError, match="accounted for 4 rounds"):
            one.run(state, 1)
    np.testing.assert_array_equal(*reported)
    expected = [
        local_spent(10.0, accounting._replace(rounds=t), batch_size=3).epsilon
        for t in (1, 2, 3, 4)
    ]
    np.testing.assert_allclose(reported[0], expected, rtol=1e-5)


def test_a_client_with_fewer_examples_than_accounted_stops_the_run():
    accounting = LocalAccounting(n_examples=7, rounds=4, delta=1e-5)
    how = {"clip_norm": 1.0, "noise_multiplier": 10.0, "batch_size": 3}
    one = simulator(make(accounting=accounting, **how), clients=many(), cohort_size=3)
    with pytest.raises(FloatingPointError, match="client"):
        one.run(one.init(START), 1)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"noise_multiplier": 1.0}, "clip_norm=inf bounds nothing"),
        ({"accounting": LocalAccounting(6, 4, 1e-5)}, "nothing to account"),
        ({"accounting": (6, 4, 1e-5)}, "LocalAccounting"),
        ({"estimator": "saga"}, "expected table_rows"),
        ({"table_rows": 3}, "leave them out"),
        ({"estimator": "sag"}, "estimator='sag'"),
        ({"channel": channels.top_k(0.5)}, "expected an unbiased channel"),
        ({"channel": channels.error_feedback(channels.top_k(0.5))}, "leave error_feed"),
    ],
)
def test_what_does_not_fit_is_refused(how, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make(**how)


def test_weights_of_examples_are_refused():
    weighted = ffm.Task(TASK.loss, lambda batch: jnp.ones(4))
    with pytest.raises(ValueError, match="without weight"):
        soteriafl(weighted, RATE, NATURAL, **OPEN)


def test_numbers_of_examples_that_are_none_stop_the_run():
    data = many()
    data[1]["number"] = data[1]["number"] + 1  # beyond the table
    one = simulator(make(batch_size=6, **SAGA), clients=data, cohort_size=3)
    with pytest.raises(FloatingPointError, match="client 1"):
        one.run(one.init(START), 1)
