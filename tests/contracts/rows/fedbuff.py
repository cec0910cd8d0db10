"""FedBuff on a log in which clients are up to two versions late."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import Problem, Row
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.fedbuff import fedbuff
from fedjax_fm.systems import Schedule

STEPS, RATE = 2, 0.05
# The table brings its own cohorts of up to six clients: whoever is not in a row starts
# from version 0.
IDS = np.array([[0, 3, 5, 6], [3, 0, 1, 2], [5, 0, 4, 3]] * 4, np.int32)
VERSIONS = np.maximum(np.arange(12)[:, None] - np.array([0, 1, 2, 1]), 0).astype(
    np.int32
)


def schedule() -> Schedule:
    """Twelve updates of four arrivals each."""
    times = np.arange(12.0)[:, None] + np.zeros((12, 4))
    return Schedule(ids=IDS, versions=VERSIONS, started=times, arrived=times + 1)


def _make() -> Problem:
    delta, backbone = make_trees()
    algorithm = fedbuff(
        ffm.Task(mlp_loss),
        optax.sgd(RATE),
        schedule=schedule(),
        local_steps=STEPS,
        batch_size=8,
    )
    algorithm = algorithm._replace(sampler=None)
    return Problem(
        algorithm=algorithm,
        delta=delta,
        backbone=backbone,
        clients=make_clients(sizes=(6, 1, 4, 2, 6, 3, 5)),
        cohort_size=4,
    )


def _centralised(problem, client, key):
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, key)[0])

    delta = problem.delta
    for _ in range(STEPS):
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, jax.grad(loss)(delta))
    return jax.tree.map(
        lambda w, t: w - (w - t) / 4, problem.delta, delta
    )  # a quarter of a buffer of four


ROWS = {"fedbuff": Row(_make, _centralised)}
