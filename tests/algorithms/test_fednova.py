"""FedNova: norms of the steps' weights, fixed points with unequal work, FedAvg."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, run

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import fednova, fedprox
from fedjax_fm.algorithms.reach import reach_of

ETA = 0.1
SIZES = np.array([1, 3, 2, 6])
SHARES = SIZES / SIZES.sum()
_, A = centres()
ONES = np.ones_like(A)
DATA = clients(ONES, A, SIZES)
PASSES = {"epochs": 2, "batch_size": 1}  # tau_k = 2 n_k
TAUS = 2 * SIZES
TREE = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}


# eta ||a||_1


def recursion(tau, rho=0.0, mu=0.0):
    """The authors' code, step by step."""
    counter, norm = 0.0, 0.0
    for _ in range(tau):
        counter = rho * counter + 1
        norm += counter
        if mu:
            norm = (1 - ETA * mu) * (norm - counter) + 1
    return norm


@pytest.mark.parametrize("tau", [0, 1, 2, 7])
def test_norms_are_the_papers(tau):
    rho, mu = 0.9, 0.5
    with_momentum = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    proximal = (1 - (1 - ETA * mu) ** tau) / (ETA * mu)
    found = [
        reach_of(optax.sgd(ETA), TREE, jnp.int32(tau)),
        reach_of(optax.sgd(ETA, momentum=rho), TREE, jnp.int32(tau)),
        reach_of(optax.sgd(ETA), TREE, jnp.int32(tau), lambda g, w: g + mu * w),
    ]
    closed = [tau, with_momentum, proximal]
    np.testing.assert_allclose(found, ETA * np.array(closed), rtol=1e-5)
    by_steps = [recursion(tau), recursion(tau, rho), recursion(tau, mu=mu)]
    np.testing.assert_allclose(closed, by_steps, rtol=1e-9)


def test_a_schedule_is_followed():
    rates = optax.piecewise_constant_schedule(0.4, {2: 0.25})
    found = reach_of(optax.sgd(rates), TREE, 3)
    assert float(found) == pytest.approx(0.4 + 0.4 + 0.1)


# Rounds


def test_with_equal_work_it_is_fedavg():
    walk = {"local_steps": 3, "batch_size": 8}
    optimizer = optax.sgd(ETA, momentum=0.9)
    plain, _, _ = run(ffm.fedavg(TASK, optimizer, optax.sgd(0.7), **walk), DATA, 3)
    state, metrics, _ = run(fednova(TASK, optimizer, optax.sgd(0.7), **walk), DATA, 3)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-5)
    # three floats and one more up, three down, for each of four clients
    assert metrics["uplink_bytes"].tolist() == [4 * 16] * 3
    assert metrics["downlink_bytes"].tolist() == [4 * 12] * 3


def fixed_point(weights):
    return (weights[:, None] * A).sum(0) / weights.sum()


def test_it_rests_where_the_paper_says():
    """On 1/2 (w - a_k)^2 a client goes 1 - (1 - eta)^tau_k of its way. FedNova divides by
    tau_k; FedAvg does not, and rests elsewhere.
    """
    ways = SHARES * (1 - (1 - ETA) ** TAUS)
    state, _, _ = run(fednova(TASK, optax.sgd(ETA), **PASSES), DATA, 400)
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **PASSES), DATA, 400)
    np.testing.assert_allclose(state.delta, fixed_point(ways / TAUS), rtol=1e-4)
    np.testing.assert_allclose(plain.delta, fixed_point(ways), rtol=1e-4)
    # a smaller rate leaves FedNova at the mean of all examples, FedAvg at another
    small, passes = optax.sgd(0.002), 4000
    state, _, _ = run(fednova(TASK, small, **PASSES), DATA, passes)
    plain, _, _ = run(ffm.fedavg(TASK, small, **PASSES), DATA, passes)
    mean = SHARES @ A
    np.testing.assert_allclose(state.delta, mean, atol=0.03)
    np.testing.assert_allclose(plain.delta, fixed_point(SHARES * TAUS), atol=0.03)
    assert np.abs(plain.delta - mean).max() > 0.5


def test_the_proximal_term_is_fedproxs():
    walk = {"local_steps": 3, "batch_size": 8}
    near, _, _ = run(fedprox(TASK, optax.sgd(ETA), mu=0.8, **walk), DATA, 2)
    state, _, _ = run(fednova(TASK, optax.sgd(ETA), mu=0.8, **walk), DATA, 2)
    np.testing.assert_allclose(state.delta, near.delta, rtol=1e-5)


def authors_round(w, mu, eta=ETA):
    """A round as github.com/JYWa/FedNova has it for SGD: changes are scaled by tau_eff over
    the norm, and tau_eff is the mean number of steps where mu > 0.
    """
    norms = np.array([recursion(tau, mu=mu) for tau in TAUS])
    tau_eff = SHARES @ TAUS
    changes = np.zeros_like(A)
    for k, tau in enumerate(TAUS):
        v = w.copy()
        for _ in range(tau):
            v = v - eta * (v - A[k] + mu * (v - w))
        changes[k] = w - v
    return w - SHARES * tau_eff / norms @ changes


def test_the_authors_code_counts_steps():
    mu, walk = 0.8, {"epochs": 2, "batch_size": 1}
    method = fednova(TASK, optax.sgd(ETA), mu=mu, effective="steps", **walk)
    state, metrics, _ = run(method, DATA, 2)
    expected = authors_round(authors_round(np.full(3, 0.5), mu), mu)
    np.testing.assert_allclose(state.delta, expected, rtol=1e-5)
    assert metrics["uplink_bytes"].tolist() == [4 * 16] * 2
    papers, _, _ = run(fednova(TASK, optax.sgd(ETA), mu=mu, **walk), DATA, 2)
    assert np.abs(papers.delta - state.delta).max() > 0.05


def test_steps_without_a_pull_are_refused():
    with pytest.raises(ValueError, match="expected mu > 0, got mu=0"):
        fednova(TASK, optax.sgd(ETA), effective="steps", **PASSES)


def test_stragglers_count_by_their_data_not_by_their_steps():
    """Of two equal clients one manages one step of four: with a small rate both pull
    equally; FedAvg leans to the other.
    """
    data = clients(ONES[:2], np.array([[1.0] * 3, [-1.0] * 3], np.float32))
    slow = ffm.Behaviour(most_steps=lambda id, round, key: jnp.where(id == 0, 1, 4))
    walk, small = {"local_steps": 4, "batch_size": 1}, optax.sgd(0.01)
    state, _, _ = run(fednova(TASK, small, **walk), data, 1500, behaviour=slow)
    plain, _, _ = run(ffm.fedavg(TASK, small, **walk), data, 1500, behaviour=slow)
    np.testing.assert_allclose(state.delta, 0, atol=0.01)
    np.testing.assert_allclose(plain.delta, -0.6, atol=0.01)


def test_a_coarse_uplink_may_spare_the_norm():
    spared = channels.per_leaf(
        ("reach", channels.identity()), otherwise=channels.top_k(1 / 3)
    )
    method = fednova(TASK, optax.sgd(ETA), local_steps=2, batch_size=8)
    state, metrics, _ = run(method, DATA[:1], uplink=spared)
    step = (1 - (1 - ETA) ** 2) * (A[0] - 0.5)
    largest = np.abs(step) == np.abs(step).max()
    np.testing.assert_allclose(state.delta, 0.5 + step * largest, rtol=1e-5)
    # one float, its place in a byte, and the norm
    assert metrics["uplink_bytes"].tolist() == [4 + 1 + 4]


def test_an_optimizer_that_stands_still_moves_nothing():
    method = fednova(TASK, optax.sgd(0.0), **PASSES)
    state, _, _ = run(method, DATA)
    np.testing.assert_array_equal(state.delta, np.full(3, 0.5, np.float32))
