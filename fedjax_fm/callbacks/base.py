"""What a callback may be, and how one ends a run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_fm.engine.state import SimulationState

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator

Metrics = dict[str, np.ndarray]


class Stop(Exception):
    """Raised by a callback that has seen enough.

    The run ends after this round, as if it had been asked for no more.
    """


class CallbackError(Exception):
    """A callback raised; the error is the cause of this one.

    Attributes:
      state, metrics: after the last round, with which `simulator.run` can go on.
    """

    def __init__(self, name: str, state: SimulationState, metrics: Metrics):
        self.state, self.metrics = state, metrics
        super().__init__(
            f"the callback {name} failed after round {state.round}; the state is "
            "in this exception's `state`, the metrics in `metrics`"
        )


class Callback:
    """A callback with more than one moment; a plain function has `__call__` alone.

    None of them keeps the state, whose memory the next rounds may take over.
    """

    def restore(
        self, simulator: "Simulator", state: SimulationState
    ) -> tuple[SimulationState, Metrics] | None:
        """Before everything else.

        The state and the metrics of an earlier part of this run, if there is one.
        """
        return None

    def begin(
        self,
        simulator: "Simulator",
        state: SimulationState,
        metrics: Metrics,
        last: int,
    ) -> None:
        """Before the first round; may raise `Stop`.

        Args:
          simulator: that runs.
          state, metrics: at the beginning; not empty where a run goes on.
          last: the round that the run is to end with.
        """

    def __call__(
        self, round: int, state: SimulationState, metrics: Metrics
    ) -> Mapping[str, float] | None:
        """Every so many rounds: what it returns are columns of the metrics."""
        return None

    def tick(
        self, state: SimulationState, metrics: Metrics, seconds: float, due: bool
    ) -> None:
        """After every few rounds, more often than `__call__` where rounds are slow, and
        after it where both are due.

        Args:
          state, metrics: so far.
          seconds: since the last tick, callbacks not counted.
          due: whether `__call__` has been called.
        """

    def end(
        self, state: SimulationState, metrics: Metrics, error: BaseException | None
    ) -> None:
        """After the last round, also when the run failed."""


def name_of(callback: Any) -> str:
    """How messages call a callback."""
    own = getattr(callback, "__name__", None) or type(callback).__name__
    return own.lstrip("_")
