"""The class of callbacks, and the exceptions of a run with callbacks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_fm.engine.state import SimulationState

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator

Metrics = dict[str, np.ndarray]


class Stop(Exception):
    """Raised by a callback to end the run after this round, without an error."""


class CallbackError(Exception):
    """A callback raised an error, which is the `__cause__` of this one.

    Attributes:
      state: after the last round; `simulator.run` can go on from it.
      metrics: of all rounds so far.
    """

    def __init__(self, name: str, state: SimulationState, metrics: Metrics):
        self.state, self.metrics = state, metrics
        super().__init__(
            f"the callback {name} failed after round {state.round}; the state is "
            "in this exception's `state`, the metrics in `metrics`"
        )


class Callback:
    """A callback that is called at several moments of a run.

    Derive from it and override some of its methods; a plain function is the same as
    `__call__` alone. No method may keep the state, because the next rounds may reuse
    its memory.

    Example:
      >>> class Count(Callback):
      ...     def begin(self, simulator, state, metrics, last):
      ...         self.looks = 0
      ...
      ...     def __call__(self, round, state, metrics):
      ...         self.looks += 1
      ...         return {"looks": self.looks}
    """

    def restore(
        self, simulator: "Simulator", state: SimulationState
    ) -> tuple[SimulationState, Metrics] | None:
        """Called first: finds an earlier part of this run.

        Args:
          simulator: that runs.
          state: that `run` was given.

        Returns:
          State and metrics of the earlier part, from which the run goes on; None if
          there is none.
        """
        return None

    def begin(
        self,
        simulator: "Simulator",
        state: SimulationState,
        metrics: Metrics,
        last: int,
    ) -> None:
        """Called before the first round; may raise `Stop`.

        Args:
          simulator: that runs.
          state: at the beginning.
          metrics: so far; empty unless the run goes on.
          last: the round that the run is to end with.
        """

    def __call__(
        self, round: int, state: SimulationState, metrics: Metrics
    ) -> Mapping[str, float] | None:
        """Called every `every` rounds and after the last one; may raise `Stop`.

        Args:
          round: that has ended, from 1.
          state: after it.
          metrics: so far.

        Returns:
          {name: number} for the metrics of this round, or None.
        """
        return None

    def tick(
        self, state: SimulationState, metrics: Metrics, seconds: float, due: bool
    ) -> None:
        """Called about twice a second, or after every round if rounds take longer.

        Where `__call__` is due after the same round, it comes first.

        Args:
          state: after the last round so far.
          metrics: so far.
          seconds: of the rounds since the last tick.
          due: whether `__call__` has just been called.
        """

    def end(
        self, state: SimulationState, metrics: Metrics, error: BaseException | None
    ) -> None:
        """Called after the last round, also when the run failed or could not begin.

        Args:
          state: after the last round that succeeded.
          metrics: of all rounds.
          error: that ended the run; None if none did.
        """


def name_of(callback: Any) -> str:
    """The name of a callback in messages.

    Args:
      callback: a function or an object.

    Returns:
      The name of the function or of the class.
    """
    own = getattr(callback, "__name__", None) or type(callback).__name__
    return own.lstrip("_")
