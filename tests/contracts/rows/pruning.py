"""The methods that prune, on a two-layer network of which one layer is pruned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import Problem, Row
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import algorithms

STEPS, RATE = 2, 0.05
TASK, SGD = ffm.Task(mlp_loss), optax.sgd(RATE)
WALK = {"local_steps": STEPS, "batch_size": 8}
SIZES = (6, 1, 4, 2, 6, 3, 5)


def _made(make, **how):
    def of_row() -> Problem:
        delta, backbone = make_trees()
        return Problem(
            algorithm=make(TASK, SGD, **WALK, **how),
            delta=delta,
            backbone=backbone,
            clients=make_clients(sizes=SIZES),
            cohort_size=4,
        )

    return of_row


def _largest(scores, k):
    """bool like the scores: the k largest, ties to the lowest index."""
    kept = np.argsort(-np.ravel(scores), kind="stable")[:k]
    mask = np.zeros(np.size(scores), bool)
    mask[kept] = True
    return mask.reshape(np.shape(scores))


def _trained(problem, client, start, mask):
    """SGD on the entries of w that a mask keeps, and on all of v."""
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, None)[0])

    delta = {"w": jnp.where(mask, start["w"], 0), "v": jnp.asarray(start["v"])}
    for _ in range(STEPS):
        g = jax.grad(loss)(delta)
        w = delta["w"] - RATE * jnp.where(mask, g["w"], 0)
        delta = {"w": w, "v": delta["v"] - RATE * g["v"]}
    return delta


def _gradual(problem, client, key):
    start = problem.delta
    mask = _largest(np.abs(start["w"]), 6)
    end = _trained(problem, client, start, mask)
    after = _largest(np.where(mask, np.abs(end["w"]), -1), 3)
    return {"w": jnp.where(after, end["w"], 0), "v": end["v"]}


def _ticket(problem, client, key):
    start = problem.delta
    end = _trained(problem, client, start, np.ones((3, 4), bool))
    after = _largest(np.abs(end["w"]), 6)
    return {"w": jnp.where(after, start["w"], 0), "v": start["v"]}


ROWS = {
    "gradual_pruning": Row(
        _made(
            algorithms.gradual_pruning,
            initial_sparsity=0.5,
            final_sparsity=0.75,
            last=1,
        ),
        _gradual,
    ),
    "lottery_ticket": Row(
        _made(algorithms.lottery_ticket, levels=2, rounds_per_level=1, rate=0.5),
        _ticket,
    ),
}
