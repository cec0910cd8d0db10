"""Rounds that cannot be finished: what is said of them, and what is kept."""

import contextlib
from collections.abc import Iterator

import numpy as np

from fedjax_fm.engine.parts import OUTSIDE, OVERFLOW, SOMEBODY
from fedjax_fm.engine.state import SimulationState


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """Adds to an error of a method's own code where in a round that was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"fedjax_fm: {where}")
        raise


class RoundError(Exception):
    """A round that could not be finished; it took no effect.

    Attributes:
      round: which one; state, metrics: after the last good round.
    """

    def __init__(
        self, message: str, state: SimulationState, metrics: dict[str, np.ndarray]
    ):
        self.round, self.state, self.metrics = state.round, state, metrics
        super().__init__(
            f"round {self.round}: {message} The state after the last good round "
            "is in the exception's `state`."
        )


class NonFiniteClient(RoundError, FloatingPointError):
    """A client sent NaN or infinity; `client` is the smallest id among those concerned."""

    def __init__(
        self, client: int, state: SimulationState, metrics: dict[str, np.ndarray]
    ):
        self.client = client
        cure = (
            "Look at that client's data (a label outside of the classes gives NaN), "
            "lower the learning rate or clip."
        )
        super().__init__(
            f"client {client} produced NaN or infinity (loss or upload). {cure}",
            state,
            metrics,
        )


class SumOverflow(RoundError, FloatingPointError):
    """Every upload is finite, their sum is not."""


class CohortOverflow(RoundError):
    """The sampler drew more clients than its capacity.

    Leaving some out would break a privacy accountant.
    """


class UnknownClient(RoundError):
    """The sampler drew an id that no client of the population has."""


def error_of(
    bad: int,
    state: SimulationState,
    metrics: dict[str, np.ndarray],
    capacity: int,
    n_clients: int,
) -> RoundError:
    """What to raise for a round whose first bad client is `bad`, or one of the codes in
    parts.py.
    """
    if bad == OVERFLOW:
        message = (
            f"the sampler drew more clients than its capacity of {capacity}; raise it "
            "and start again."
        )
        return CohortOverflow(message, state, metrics)
    if bad == OUTSIDE:
        message = (
            f"the sampler drew an id outside of 0 to {n_clients - 1}; make it for "
            "this population."
        )
        return UnknownClient(message, state, metrics)
    if bad == SOMEBODY:
        message = (
            "every upload is finite, but their weighted sum is beyond f32; lower the "
            "learning rate or clip."
        )
        return SumOverflow(message, state, metrics)
    return NonFiniteClient(bad, state, metrics)
