"""The methods that compress in the client, with channels that draw nothing."""

import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from contract import Problem, Row, shared_model
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels

STEPS, RATE = 2, 0.05
SIZES = (6, 1, 4, 2, 6, 3, 5)
TASK, SGD = ffm.Task(mlp_loss), optax.sgd(RATE)
WALK = {"local_steps": STEPS, "batch_size": 8}
EXACT = channels.identity()


def _row(method, centralised, model=shared_model, **how):
    def make() -> Problem:
        delta, backbone = make_trees()
        return Problem(
            algorithm=method(**how),
            delta=delta,
            backbone=backbone,
            clients=make_clients(sizes=SIZES),
            cohort_size=4,
        )

    return Row(make, centralised, model)


def _gradient(problem, client, delta):
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, None)[0])

    return jax.grad(loss)(delta)


def _descent(steps, start=None):
    """Plain gradient descent of one client, from a function of delta."""

    def centralised(problem, client, key):
        delta = problem.delta if start is None else start(problem.delta)
        for _ in range(steps):
            gradient = _gradient(problem, client, delta)
            delta = jax.tree.map(lambda w, g: w - RATE * g, delta, gradient)
        return delta

    return centralised


def _largest(tree, k):
    """The k entries of largest magnitude of a whole tree."""
    flat, back = jax.flatten_util.ravel_pytree(tree)
    kept = np.argsort(-np.abs(flat), kind="stable")[:k]
    mask = np.zeros(flat.shape, bool)
    mask[kept] = True
    return back(jnp.where(mask, flat, 0))


def _ef21(problem, client, key):
    sent = _largest(_gradient(problem, client, problem.delta), 4)
    return jax.tree.map(lambda w, g: w - RATE * g, problem.delta, sent)


def _rounded(tree, weight=1e-2):
    """NNADQ of every leaf, by its formula."""

    def one(x):
        x = np.asarray(x, np.float32)
        offset = (x.min() + x.max()) / 2
        norm = np.abs(x - offset).max()
        level = math.floor(max(1, math.sqrt(norm * 32 * math.log(4) / weight)))
        steps = np.round(np.abs(x - offset) / norm * level)
        return jnp.float32(offset + np.sign(x - offset) * steps * norm / level)

    return jax.tree.map(one, tree)


def _fedobd(problem, client, key):
    start = _rounded(problem.delta)
    trained = _descent(STEPS, _rounded)(problem, client, key)
    update = _rounded(jax.tree.map(jnp.subtract, start, trained))
    return jax.tree.map(jnp.subtract, problem.delta, update)


def _flasc(problem, client, key):
    start = _largest(problem.delta, 8)
    trained = _descent(STEPS, lambda delta: start)(problem, client, key)
    update = _largest(jax.tree.map(jnp.subtract, start, trained), 4)
    return jax.tree.map(jnp.subtract, problem.delta, update)


def _sparse(problem, state, client):
    return _largest(state.delta, 8), problem.backbone


GRADIENT = {"task": TASK, "learning_rate": RATE, "epochs": 1, "batch_size": 8}
LOCAL = {"task": TASK, "client_optimizer": SGD, **WALK}
PRIVATE = {
    "task": TASK,
    "learning_rate": RATE,
    "channel": EXACT,
    "clip_norm": math.inf,
    "noise_multiplier": 0.0,
    "batch_size": 8,
}
ROWS = {
    "fedpaq": _row(algorithms.fedpaq, _descent(STEPS), channel=EXACT, **LOCAL),
    "diana": _row(
        algorithms.diana, _descent(1), channel=EXACT, momentum=0.9, **GRADIENT
    ),
    "ef21": _row(algorithms.ef21, _ef21, channel=channels.top_k(0.25), **GRADIENT),
    "fedlin": _row(
        algorithms.fedlin,
        _descent(STEPS),
        client_channel=channels.chain(channels.top_k(1.0), EXACT),
        task=TASK,
        learning_rate=RATE,
        **WALK,
    ),
    "fedobd": _row(
        algorithms.fedobd, _fedobd, dropped=0.0, quantizer_weight=1e-2, **LOCAL
    ),
    "flasc": _row(
        algorithms.flasc,
        _flasc,
        _sparse,
        server_optimizer=optax.sgd(1.0),
        density_down=0.5,
        density_up=0.25,
        **LOCAL,
    ),
    "docofl": _row(
        algorithms.docofl,
        _descent(STEPS),
        anchor=EXACT,
        correction=EXACT,
        every=2,
        **LOCAL,
    ),
    "soteriafl": _row(
        algorithms.soteriafl,
        _descent(1),
        estimator="svrg",
        snapshot_rate=0.5,
        **PRIVATE,
    ),
}
