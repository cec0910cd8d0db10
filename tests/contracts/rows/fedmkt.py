"""FedMKT with bigram models of two vocabularies; the round in numpy."""

import jax.numpy as jnp
import optax
from contract import Problem, Row, own_state
from two_vocabularies import (
    CLIENT,
    HOW,
    SERVER,
    TASK,
    TEXTS,
    TO_SERVER,
    clients,
    logits_of,
    losses_of,
    slope,
    start,
    transferred,
)

from fedjax_fm.algorithms import Models, fedmkt

RATE, STEPS = 0.3, 2


def _make() -> Problem:
    method = fedmkt(
        TASK,
        optax.sgd(RATE),
        top_k=3,
        transfer_optimizer=optax.sgd(RATE),
        transfer_batch_size=TEXTS,
        local_steps=STEPS,
        batch_size=8,
        **HOW,
    )
    return Problem(
        algorithm=method,
        delta=start(),
        backbone=(),
        clients=clients((6, 1, 4, 2, 6, 3, 5)),
        cohort_size=4,
    )


def _centralised(problem, client, key):
    """The server's step with this client as the only teacher."""
    small = problem.delta.client
    for _ in range(STEPS):
        small = small - RATE * slope(small, client)
    large = problem.delta.server
    better = losses_of(small, CLIENT.public) < losses_of(large, SERVER.public)
    how = {"k": 3, "share": 0.9, "temperature": 1.0, "rate": RATE}
    teacher = logits_of(small, CLIENT.public)
    after = transferred(large, SERVER.public, teacher, TO_SERVER, better, **how)
    return Models(jnp.float32(after), problem.delta.client)


def _model(problem, state, client):
    if client is None:
        return state.delta.server, ()
    return own_state(state, client), problem.backbone


ROWS = {"fedmkt": Row(_make, _centralised, _model, rtol=2e-4, atol=2e-5)}
