"""FADA; the rounds as a plain loop are in tests/algorithms/test_fada.py."""

import domain_problem
from contract import Problem, Row


def _make() -> Problem:
    _, delta = domain_problem.networks()
    return Problem(
        algorithm=domain_problem.method(),
        delta=delta,
        backbone=domain_problem.backbone(),
        clients=domain_problem.clients((6, 1, 4, 2, 6, 3, 5)),
        cohort_size=4,
    )


def _centralised(problem, client, key):
    """A target without sources has nobody to learn from."""
    return problem.delta


ROWS = {"fada": Row(_make, _centralised, rtol=2e-4, atol=2e-5)}
