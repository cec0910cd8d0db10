"""HeteroFL with rates that change each round, on an MLP."""

import jax
import numpy as np
import optax
from contract import Problem, Row
from width_models import descent, first_width, mlp, where

import fedjax_fm as ffm
from fedjax_fm.algorithms.heterofl import heterofl

STEPS, RATE = 3, 0.1
SEED = 5  # of the table's runs
SHARES = {1.0: 0.2, 0.5: 0.3, 0.25: 0.5}
MODEL = mlp()


def _make() -> Problem:
    algorithm = heterofl(
        ffm.Task(MODEL.loss),
        optax.sgd(RATE),
        MODEL.prefixes,
        SHARES,
        local_steps=STEPS,
        batch_size=8,
    )
    return Problem(
        algorithm=algorithm,
        delta=MODEL.delta,
        backbone=(),
        clients=MODEL.clients(),
        cohort_size=4,
    )


def _centralised(problem: Problem, client, key):
    at = where(MODEL.prefixes, first_width(SHARES, SEED))
    new = jax.tree.map(np.array, problem.delta)
    part = descent(MODEL.loss, RATE, STEPS)(
        jax.tree.map(lambda x, at: x[at], new, at), client
    )
    jax.tree.map(lambda x, at, values: x.__setitem__(at, values), new, at, part)
    return new


ROWS = {"heterofl": Row(_make, _centralised)}
