"""A row of the table of contracts: a federated method on a problem so small that all
its promises can be checked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import fedjax_fm as ffm
from fedjax_fm.testing.contract import Problem, simulator_of


def shared_model(
    problem: Problem, state: ffm.SimulationState, client: int | None
) -> Any:
    """The server's for every client."""
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


simulator = simulator_of
