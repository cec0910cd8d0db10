"""FedDPA-T: a shared and a private delta on a two-layer network."""

import jax
import jax.numpy as jnp
import optax
from contract import Problem, Row
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.feddpa import feddpa_t

STEPS, RATE = 3, 0.05


def _both(adapters, backbone, batch, key):
    mixed = jax.tree.map(lambda g, p: (1 - adapters.mix) * g + adapters.mix * p, adapters.shared, adapters.private)
    return mlp_loss(mixed, backbone, batch, key)


def _make() -> Problem:
    delta, backbone = make_trees()
    algorithm = feddpa_t(
        ffm.Task(mlp_loss), ffm.Task(_both), optax.sgd(RATE), optax.sgd(0.7, momentum=0.9), local_steps=STEPS, batch_size=8
    )  # fmt: skip
    return Problem(algorithm, delta, backbone, make_clients(sizes=(6, 1, 4, 2, 6, 3, 5)), 4)


def _shared_alone(problem: Problem, client, key):
    """The server's adapter knows nothing of private ones."""
    batch = jax.tree.map(jnp.asarray, client)
    loss = lambda delta: jnp.mean(mlp_loss(delta, problem.backbone, batch, key)[0])
    delta = problem.delta
    for _ in range(STEPS):
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, jax.grad(loss)(delta))
    return jax.tree.map(lambda w, t: w - 0.7 * (w - t), problem.delta, delta)


ROWS = {"feddpa_t": Row(_make, _shared_alone)}
