"""FedProx against a numpy loop, its limits, and FedAvg."""

import numpy as np
import optax
import pytest
from quadratics import TASK, centres, clients, run

import fedjax_fm as ffm
from fedjax_fm.algorithms import fedprox

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
