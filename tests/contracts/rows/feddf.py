"""FedDF: a perceptron and a linear model, fused on public examples."""

import jax
import optax
from contract import Problem, Row
from two_architectures import (
    LOGITS,
    architectures,
    descent,
    make_clients,
    make_public,
    make_trees,
)

from fedjax_fm.algorithms.feddf import feddf

STEPS, RATE, SERVER_STEPS, SERVER_RATE = 3, 0.3, 4, 0.5
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
    algorithm = feddf(
        architectures(RATE),
        GROUPS,
        make_public(),
        backbones=backbones,
        server_steps=SERVER_STEPS,
        server_optimizer=optax.sgd(SERVER_RATE),
        server_batch_size=16,
        local_steps=STEPS,
        batch_size=8,
    )

    def for_ten(delta, key, setting):
        return algorithm.init(delta, key, setting._replace(n_clients=len(GROUPS)))

    return Problem(
        algorithm=algorithm._replace(init=for_ten),
        delta=deltas,
        backbone=backbones,
        clients=make_clients(),
        cohort_size=4,
    )


def _one_teacher(problem: Problem, client, key):
    """The perceptron of the one client teaches the linear model, and itself nothing."""
    (first, second), (backbone, other), public = (
        problem.delta,
        problem.backbone,
        make_public(),
    )
    teacher = descent(0, first, backbone, client, steps=STEPS, rate=RATE)
    target = jax.numpy.asarray(LOGITS[0](teacher, backbone, public))
    return teacher, descent(
        1, second, other, public, steps=SERVER_STEPS, rate=SERVER_RATE, target=target
    )


ROWS = {"feddf": Row(_make, _one_teacher)}
