"""A row of the table of contracts: a federated method on a problem so small that all
its promises can be checked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_fm as ffm
from fedjax_fm.types import Algorithm


class Problem(NamedTuple):
    """What a simulator needs."""

    algorithm: Algorithm
    delta: Any
    backbone: Any
    clients: Sequence[dict[str, np.ndarray]]  # at least six, ragged
    cohort_size: int


def shared_model(
    problem: Problem, state: ffm.SimulationState, client: int | None
) -> Any:
    """The server's for everybody."""
    return state.delta, problem.backbone


def own_state(state: ffm.SimulationState, client: int) -> Any:
    """What the method keeps for a client."""
    return jax.tree.map(lambda x: x[client], state.carry.clients)


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
      make: the problem, the same at every call.
      centralised: `(problem, client, key) -> delta` after one round in which that
        client (id 0) is the whole population, by a plain loop without the engine; `key`
        is the round's.
      model: `(problem, state, client) -> (delta, backbone)`, what `Simulator.model` is
        to give, client None for the server's; default: what the server trains, beside
        the backbone as it came.
      rtol, atol: of comparisons up to the order of float sums.
    """

    make: Callable[[], Problem]
    centralised: Callable[[Problem, dict[str, np.ndarray], jax.Array], Any]
    model: Callable[[Problem, ffm.SimulationState, int | None], Any] = shared_model
    rtol: float = 2e-5
    atol: float = 2e-6


def simulator(problem: Problem, **how) -> ffm.Simulator:
    """The problem's, on one device unless `how` says otherwise."""
    how = {"cohort_size": problem.cohort_size, "seed": 5, "devices": 1} | how
    clients = how.pop("clients", problem.clients)
    return ffm.Simulator(
        how.pop("algorithm", problem.algorithm),
        ffm.Population.from_clients(clients),
        backbone=how.pop("backbone", problem.backbone),
        **how,
    )
