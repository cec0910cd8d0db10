"""FjORD with caps that change each round, on an MLP."""

import jax
import numpy as np
import optax
from contract import Problem, Row
from width_models import first_width, mlp, ordered_descent, where

import fedjax_fm as ffm
from fedjax_fm.algorithms.fjord import fjord
from fedjax_fm.engine.keys import Purpose, derive

STEPS, RATE = 4, 0.1
SEED = 5  # of the table's runs
WIDTHS, CAPS = (0.25, 0.5, 1.0), {1.0: 0.6, 0.5: 0.4}
MODEL = mlp()


def _make() -> Problem:
    algorithm = fjord(
        ffm.Task(MODEL.loss),
        optax.sgd(RATE),
        MODEL.prefixes,
        WIDTHS,
        CAPS,
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
    cap = first_width(CAPS, SEED)
    at = where(MODEL.prefixes, cap)
    new = jax.tree.map(np.array, problem.delta)
    mine = derive(key, Purpose.CLIENT, 0, sorted(CAPS, reverse=True).index(cap))
    part = ordered_descent(MODEL, WIDTHS, RATE, STEPS)(
        jax.tree.map(lambda x, at: x[at], new, at), client, cap, mine
    )
    jax.tree.map(lambda x, at, values: x.__setitem__(at, values), new, at, part)
    return new


ROWS = {"fjord": Row(_make, _centralised)}
