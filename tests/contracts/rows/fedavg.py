"""FedAvg with a server momentum, and every client by itself."""

import jax
import jax.numpy as jnp
import optax
from contract import Problem, Row, own_state
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms import local_only

STEPS, RATE = 3, 0.05
SIZES = (6, 1, 4, 2, 6, 3, 5)


def _problem(algorithm) -> Problem:
    delta, backbone = make_trees()
    return Problem(
        algorithm=algorithm,
        delta=delta,
        backbone=backbone,
        clients=make_clients(sizes=SIZES),
        cohort_size=4,
    )


def _fedavg() -> Problem:
    return _problem(
        ffm.fedavg(
            ffm.Task(mlp_loss),
            optax.sgd(RATE),
            optax.sgd(0.7, momentum=0.9),
            local_steps=STEPS,
            batch_size=8,
        )
    )


def _local_only() -> Problem:
    return _problem(
        local_only(ffm.Task(mlp_loss), optax.sgd(RATE), local_steps=STEPS, batch_size=8)
    )


def _trained(problem: Problem, client, key):
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, key)[0])

    delta = problem.delta
    for _ in range(STEPS):
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, jax.grad(loss)(delta))
    return delta


def _server_step(problem: Problem, client, key):
    return jax.tree.map(
        lambda w, t: w - 0.7 * (w - t), problem.delta, _trained(problem, client, key)
    )


def _own(problem: Problem, state, client):
    return (
        problem.delta if client is None else own_state(state, client)
    ), problem.backbone


ROWS = {
    "fedavg": Row(_fedavg, _server_step),
    "local_only": Row(_local_only, lambda problem, client, key: problem.delta, _own),
}
