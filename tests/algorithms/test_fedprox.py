"""FedProx against a numpy loop, its limits, and FedAvg."""

from itertools import pairwise

import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, run

import fedjax_fm as ffm
from fedjax_fm.algorithms import fedprox, fedprox_adaptive

ETA, STEPS = 0.2, 4
WALK = {"local_steps": STEPS, "batch_size": 4}
SIZES = (1, 3, 2, 4)
H, A = centres()
DATA = clients(H, A, SIZES)
SHARES = np.array(SIZES) / sum(SIZES)


def proximal(mu, *, implicit, rounds, steps=STEPS):
    """Algorithm 2 in numpy, with either step."""
    w = np.full(3, 0.5)
    for _ in range(rounds):
        ends = []
        for h, a in zip(H, A, strict=True):
            x = w.copy()
            for _ in range(steps):
                if implicit:
                    x = (x - ETA * h * (x - a) + ETA * mu * w) / (1 + ETA * mu)
                else:
                    x = x - ETA * (h * (x - a) + mu * (x - w))
            ends.append(x)
        w = SHARES @ np.array(ends)
    return w


def test_without_a_pull_it_is_fedavg():
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **WALK), DATA, 3)
    state, _, _ = run(fedprox(TASK, optax.sgd(ETA), mu=0.0, **WALK), DATA, 3)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6)


@pytest.mark.parametrize("implicit", [False, True])
def test_rounds_are_those_of_the_paper(implicit):
    rate = ETA if implicit else None
    method = fedprox(TASK, optax.sgd(ETA), mu=0.7, implicit_rate=rate, **WALK)
    state, metrics, _ = run(method, DATA, 3)
    expected = proximal(0.7, implicit=implicit, rounds=3)
    np.testing.assert_allclose(state.delta, expected, rtol=1e-5)
    assert metrics["uplink_bytes"].tolist() == [4 * 12] * 3
    assert metrics["downlink_bytes"].tolist() == [4 * 12] * 3


def test_the_reported_loss_is_the_tasks():
    """At the first step the penalty is zero, later it is not: one step shows nothing."""
    method = fedprox(TASK, optax.sgd(0.0), mu=5.0, **WALK)
    _, metrics, _ = run(method, DATA)
    losses = 0.5 * (H * (0.5 - A) ** 2).sum(1)
    np.testing.assert_allclose(metrics["loss"][0], SHARES @ losses, rtol=1e-5)


def test_a_huge_pull_holds_the_implicit_step_and_throws_the_explicit_one():
    held = fedprox(TASK, optax.sgd(ETA), mu=1e30, implicit_rate=ETA, **WALK)
    state, _, _ = run(held, DATA)
    np.testing.assert_allclose(state.delta, np.full(3, 0.5), rtol=1e-6)
    thrown = fedprox(TASK, optax.sgd(ETA), mu=1e4, **WALK)  # eta mu = 2000
    state, _, _ = run(thrown, DATA)
    assert np.abs(np.asarray(state.delta)).min() > 1e6


def test_both_steps_rest_at_the_same_point():
    """Clients that work to the end minimise f_k(w) + mu/2 ||w - w_t||^2."""
    mu, ends = 0.7, (H * A + 0.7 * 0.5) / (H + 0.7)
    long = WALK | {"local_steps": 200}
    for rate in (None, ETA):
        method = fedprox(TASK, optax.sgd(ETA), mu=mu, implicit_rate=rate, **long)
        state, _, _ = run(method, DATA)
        np.testing.assert_allclose(state.delta, SHARES @ ends, rtol=1e-5)


# mu that follows the loss


def heuristic(losses, mu, change, patience):
    """Section 5.3.2: mu of every round, from the losses of those before it."""
    found, falls = [mu], 0
    for before, now in pairwise(losses):
        if now > before:
            mu, falls = mu + change, 0
        elif now < before:
            falls += 1
        else:
            falls = 0
        if falls == patience:
            mu, falls = max(mu - change, 0.0), 0
        found.append(mu)
    return [found[0], *found[:-1]]


def test_mu_rises_and_falls_with_the_loss():
    """Momentum at the server overshoots again and again: the loss rises and falls."""
    how = {"mu": 0.25, "change": 0.1, "patience": 2}
    outer = optax.sgd(0.3, momentum=0.95)
    method = fedprox_adaptive(TASK, optax.sgd(ETA), outer, **how, **WALK)
    _, metrics, _ = run(method, DATA, 30)
    losses = metrics["loss"].tolist()
    expected = heuristic(losses, **how)
    np.testing.assert_allclose(metrics["mu"], expected, rtol=1e-5, atol=1e-6)
    steps = np.diff(metrics["mu"])
    assert (steps > 0.05).any()
    assert (steps < -0.05).any()
    # mu travels down, the loss up
    assert metrics["uplink_bytes"][0] == metrics["downlink_bytes"][0] == 4 * 16


def test_a_mu_that_never_changes_is_fedprox():
    outer = optax.sgd(0.5)
    fixed = fedprox(TASK, optax.sgd(ETA), outer, mu=0.7, implicit_rate=ETA, **WALK)
    how = {"mu": 0.7, "patience": 9, "implicit_rate": ETA, **WALK}
    method = fedprox_adaptive(TASK, optax.sgd(ETA), outer, **how)
    plain, _, _ = run(fixed, DATA, 4)
    state, metrics, _ = run(method, DATA, 4)
    assert (np.diff(metrics["loss"]) < 0).all()
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6)
