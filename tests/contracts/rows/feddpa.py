"""FedDPA-T and FedDPA-F: a shared and a private delta on a two-layer network."""

import jax
import jax.numpy as jnp
import optax
from contract import Problem, Row, own_state
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.feddpa import Adapters, feddpa_f, feddpa_t

STEPS, RATE = 3, 0.05


def _both(adapters, backbone, batch, key):
    mixed = jax.tree.map(
        lambda g, p: (1 - adapters.mix) * g + adapters.mix * p,
        adapters.shared,
        adapters.private,
    )
    return mlp_loss(mixed, backbone, batch, key)


def _make(method, **how):
    def make() -> Problem:
        delta, backbone = make_trees()
        tasks, server = (
            (ffm.Task(mlp_loss), ffm.Task(_both)),
            optax.sgd(0.7, momentum=0.9),
        )
        algorithm = method(
            *tasks, optax.sgd(RATE), server, local_steps=STEPS, batch_size=8, **how
        )
        return Problem(
            algorithm=algorithm,
            delta=delta,
            backbone=backbone,
            clients=make_clients(sizes=(6, 1, 4, 2, 6, 3, 5)),
            cohort_size=4,
        )

    return make


def _shared_alone(problem: Problem, client, key):
    """The server's adapter knows nothing of private ones."""
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, key)[0])

    delta = problem.delta
    for _ in range(STEPS):
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, jax.grad(loss)(delta))
    return jax.tree.map(lambda w, t: w - 0.7 * (w - t), problem.delta, delta)


def _side_by_side(problem: Problem, state, client):
    if client is None:
        return Adapters(state.delta, state.delta, 0.0), problem.backbone
    return Adapters(state.delta, own_state(state, client), 0.5), problem.backbone


ROWS = {
    "feddpa_t": Row(_make(feddpa_t), _shared_alone, _side_by_side),
    # The second round of the table is the one in which everybody trains a private adapter.
    "feddpa_f": Row(
        _make(feddpa_f, rounds=1, private_steps=2), _shared_alone, _side_by_side
    ),
}
