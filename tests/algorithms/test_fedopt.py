"""FedSGD, FedAvgM, FedAdagrad, FedYogi and FedAdam against numpy."""

import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, run

import fedjax_fm as ffm
from fedjax_fm.algorithms import fedadagrad, fedadam, fedavgm, fedsgd, fedyogi

ETA, STEPS, ROUNDS = 0.2, 3, 4
WALK = {"local_steps": STEPS, "batch_size": 4}
SIZES = np.array([1, 3, 2, 4])
H, A = centres()
DATA = clients(H, A, SIZES)
SHARES = SIZES / SIZES.sum()
MOST = {"momentum": 0.8, "server_learning_rate": 0.5}


def change(w):
    """w_k - w of every client, in closed form."""
    return (1 - (1 - ETA * H) ** STEPS) * (A - w)


# FedSGD


def test_fedsgd_is_gradient_descent_whatever_the_batches():
    """Batches of two of up to four rows that differ: the last is short."""
    rng = np.random.default_rng(1)
    data = [
        {name: array + rng.normal(size=array.shape).astype(np.float32) * 0.1}
        | {"h": client["h"]}
        for client in DATA
        for name, array in client.items()
        if name == "a"
    ]
    method = fedsgd(TASK, optax.sgd(ETA), epochs=1, batch_size=2)
    state, metrics, _ = run(method, data, ROUNDS)
    h, a = (np.concatenate([client[name] for client in data]) for name in "ha")
    w, losses = np.full(3, 0.5), []
    for _ in range(ROUNDS):
        losses.append(np.mean(0.5 * (h * (w - a) ** 2).sum(1)))
        w = w - ETA * (h * (w - a)).mean(0)
    np.testing.assert_allclose(state.delta, w, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    assert metrics["uplink_bytes"].tolist() == [4 * 12] * ROUNDS


def test_fedsgd_of_one_batch_is_fedavg_of_one_step():
    walk = {"local_steps": 1, "batch_size": 2}
    plain, _, _ = run(ffm.fedavg(TASK, optax.adam(ETA), **walk), DATA, 2)
    state, _, _ = run(fedsgd(TASK, optax.adam(ETA), **walk), DATA, 2)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6)


# The server's steps


def test_fedavgm_is_heavy_ball_at_the_server():
    method = fedavgm(TASK, optax.sgd(ETA), **MOST, **WALK)
    state, _, _ = run(method, DATA, ROUNDS)
    w, v = np.full(3, 0.5), np.zeros(3)
    for _ in range(ROUNDS):
        v = 0.8 * v - SHARES @ change(w)
        w = w - 0.5 * v
    np.testing.assert_allclose(state.delta, w, rtol=1e-5)


def test_fedavgm_without_momentum_is_fedavg():
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **WALK), DATA, 2)
    state, _, _ = run(fedavgm(TASK, optax.sgd(ETA), momentum=0.0, **WALK), DATA, 2)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6)


def second_moment(name, v, square, b2=0.9):
    if name == "fedadagrad":
        return v + square
    if name == "fedyogi":
        return v - (1 - b2) * square * np.sign(v - square)
    return b2 * v + (1 - b2) * square


@pytest.mark.parametrize("make", [fedadagrad, fedyogi, fedadam])
@pytest.mark.parametrize("weighted", [False, True])
def test_adaptive_steps_are_those_of_the_paper(make, weighted):
    """Algorithm 2, whose mean counts every client as one."""
    name = make.__name__
    how = {"b1": 0.6, "tau": 0.05, "server_learning_rate": 0.3}
    how |= {} if name == "fedadagrad" else {"b2": 0.9}
    method = make(TASK, optax.sgd(ETA), weighted=weighted, **how, **WALK)
    state, _, _ = run(method, DATA, ROUNDS)
    shares = SHARES if weighted else np.full(4, 0.25)
    x, m, v = np.full(3, 0.5), np.zeros(3), np.full(3, 0.05**2)
    for _ in range(ROUNDS):
        mean = shares @ change(x)
        m = 0.6 * m + 0.4 * mean
        v = second_moment(name, v, mean**2)
        x = x + 0.3 * m / (np.sqrt(v) + 0.05)
    np.testing.assert_allclose(state.delta, x, rtol=1e-4)
