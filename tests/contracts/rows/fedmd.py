"""FedMD: a perceptron and a linear model that agree on public examples."""

import jax
import numpy as np
import optax
from contract import Problem, Row, own_state
from two_architectures import (
    CLASSES,
    LOGITS,
    architectures,
    descent,
    make_clients,
    make_public,
    make_trees,
)

from fedjax_fm.algorithms.fedmd import fedmd

START, STEPS, RATE = 4, 3, 0.3
GROUPS = (
    0,
    1,
    0,
    1,
    1,
    0,
    1,
    0,
    1,
    0,
)  # of ten clients: the table takes some away and adds some


def _make() -> Problem:
    deltas, backbones = make_trees()
    algorithm = fedmd(
        architectures(RATE),
        GROUPS,
        make_public(),
        n_classes=CLASSES,
        digest_optimizer=optax.sgd(0.2),
        digest_epochs=2,
        digest_batch_size=16,
        start_epochs=START,
        local_steps=STEPS,
        batch_size=8,
    )

    def for_ten(delta, key, setting):
        return algorithm.init(delta, key, setting._replace(n_clients=len(GROUPS)))

    # The server trains nothing; what it has learned is the consensus.
    seen = algorithm._replace(
        init=for_ten, delta=lambda state: (state.delta, state.consensus)
    )
    return Problem(
        algorithm=seen,
        delta=deltas,
        backbone=backbones,
        clients=make_clients(),
        cohort_size=4,
    )


def _one_party(problem: Problem, client, key):
    """The consensus of one is what it says itself."""
    delta = descent(
        0, problem.delta[0], problem.backbone[0], client, steps=START, rate=RATE
    )
    return problem.delta, LOGITS[0](delta, problem.backbone[0], make_public())


def _parties(problem: Problem, state, client):
    """Cut out of a row of the store by hand: its first numbers, if the party ever took part."""
    if client is None:
        return problem.delta, problem.backbone
    party = own_state(state, client)
    if not party.started:
        return problem.delta, problem.backbone

    def cut(start):
        leaves, structure = jax.tree.flatten(start)
        ends = np.cumsum([np.size(leaf) for leaf in leaves])
        parts = np.split(np.asarray(party.weights), ends)
        return structure.unflatten(
            [
                part.reshape(leaf.shape)
                for part, leaf in zip(parts, leaves, strict=False)
            ]
        )

    return tuple(cut(start) for start in problem.delta), problem.backbone


ROWS = {"fedmd": Row(_make, _one_party, _parties)}
