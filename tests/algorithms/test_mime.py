"""Mime and MimeLite: central optimizers, a numpy loop, the optimum, bytes."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drift_problem import TASK, centres, clients, optimum, run

import fedjax_fm as ffm
from fedjax_fm.algorithms import mime, mimelite

ETA, BETA, STEPS = 0.1, 0.9, 3
MOMENTUM = optax.sgd(ETA, momentum=BETA)
WALK = {"local_steps": STEPS, "batch_size": 8}
SIZES = np.array([1, 3, 2, 6])
SHARES = SIZES / SIZES.sum()
H, A = centres()
DATA = clients(H, A, SIZES)


def centrally(optimizer, steps):
    """The optimizer on f = sum p_k f_k, with full gradients."""
    w = jnp.full(3, 0.5)
    state = optimizer.init(w)
    for _ in range(steps):
        gradient = jnp.asarray(SHARES @ (H * (np.asarray(w) - A)), jnp.float32)
        updates, state = optimizer.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
    return w


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [(mime, MOMENTUM), (mime, optax.adam(0.1)), (mimelite, MOMENTUM)],
    ids=["mime", "mime-adam", "mimelite"],
)
def test_one_full_step_is_the_central_optimizers(make, optimizer):
    """Mime's clients all step with c; MimeLite's with their own gradients, whose mean is c,
    which is the same where U is linear.
    """
    method = make(TASK, optimizer, local_steps=1, batch_size=8)
    state, _, _ = run(method, DATA, 5)
    np.testing.assert_allclose(state.delta, centrally(optimizer, 5), rtol=1e-4)


@pytest.mark.parametrize("corrected", [True, False])
def test_local_steps_use_the_servers_momentum_unchanged(corrected):
    """U(g, m) = g + beta m and V(g, m) = g + beta m, as optax's sgd has it."""
    make = mime if corrected else mimelite
    how = {"server_learning_rate": 0.8, **WALK}
    state, metrics, _ = run(make(TASK, MOMENTUM, **how), DATA, 4)
    x, m = np.full(3, 0.5), np.zeros(3)
    for _ in range(4):
        c, ends = SHARES @ (H * (x - A)), []
        for h, a in zip(H, A, strict=True):
            y = x.copy()
            for _ in range(STEPS):
                g = h * (y - a)
                g = g - h * (x - a) + c if corrected else g
                y = y - ETA * (g + BETA * m)
            ends.append(y)
        x = x + 0.8 * (SHARES @ np.array(ends) - x)
        m = c + BETA * m
    np.testing.assert_allclose(state.delta, x, rtol=1e-4)
    # up a gradient and a change, down x and the momentum; of Mime c as well
    down = 3 if corrected else 2
    assert metrics["uplink_bytes"].tolist() == [4 * 2 * 12] * 4
    assert metrics["downlink_bytes"].tolist() == [4 * down * 12] * 4


def test_the_loss_is_that_of_the_local_steps_alone():
    """Not that of the pass for the gradient as well, which is all at x."""
    walk = {"local_steps": 2, "batch_size": 8}
    _, metrics, _ = run(mime(TASK, optax.sgd(ETA), **walk), DATA)
    gradient = SHARES @ (H * (0.5 - A))
    at = [np.full(3, 0.5), 0.5 - ETA * gradient]
    losses = [SHARES @ (0.5 * (H * (w - A) ** 2).sum(1)) for w in at]
    assert metrics["loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_mime_reaches_the_optimum_and_mimelite_drifts():
    data, target, walk = clients(H, A), optimum(H, A), WALK | {"local_steps": 10}
    found = []
    for make in (mime, mimelite):
        state, _, _ = run(make(TASK, optax.sgd(0.05), **walk), data, 500)
        found.append(np.linalg.norm(np.asarray(state.delta) - target))
    print("distances of Mime and MimeLite after 500 rounds:", found)
    assert found[0] < 2e-6
    assert found[1] > 0.05


def test_without_momentum_mimelite_is_fedavg():
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **WALK), DATA, 3)
    state, _, _ = run(mimelite(TASK, optax.sgd(ETA), **WALK), DATA, 3)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-5)


@pytest.mark.parametrize("make", [mime, mimelite])
def test_a_round_without_an_arrival_leaves_the_momentum(make):
    behaviour = ffm.Behaviour(drops=lambda id, round, key: round == 1)
    once, _, _ = run(make(TASK, MOMENTUM, **WALK), DATA, 1)
    twice, _, _ = run(make(TASK, MOMENTUM, **WALK), DATA, 2, behaviour=behaviour)
    np.testing.assert_array_equal(once.delta, twice.delta)
    momentum = [s.carry.server.optimizer[0].trace for s in (once, twice)]
    np.testing.assert_array_equal(*momentum)
