"""A callback that shows how far a run is, at a terminal and in a notebook."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from fedjax_fm.callbacks.base import Callback, Metrics
from fedjax_fm.engine.billing import in_units
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.runs.processes import is_first
from fedjax_fm.runs.progress import RoundProgress

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator

SHOWN = (
    "loss",
    "accuracy",
    "eval_loss",
    "eval_accuracy",
    "eval_perplexity",
    "clients_accuracy",
)


class _Progress(Callback):
    """See `progress`."""

    def __init__(self, label: str, console: Console | None, lines_every: int | None):
        self.label, self.console, self.lines_every = label, console, lines_every
        self._live: RoundProgress | None = None
        self._last: dict[str, float] = {}

    def begin(
        self,
        simulator: "Simulator",
        state: SimulationState,
        metrics: Metrics,
        last: int,
    ) -> None:
        console = self.console or _console()
        if console is None or state.round >= last or not is_first():
            return
        self._live = RoundProgress(
            self.label,
            total=last,
            done=state.round,
            console=console,
            lines_every=self.lines_every or max(1, last // 10),
        )
        self._live.__enter__()

    def tick(
        self, state: SimulationState, metrics: Metrics, seconds: float, due: bool
    ) -> None:
        if self._live is None:
            return
        newest = {name: _latest(metrics, name) for name in SHOWN}
        self._last |= {name: v for name, v in newest.items() if v is not None}
        shown: dict[str, Any] = {name: f"{v:.4g}" for name, v in self._last.items()}
        for name, sign in (("uplink_bytes", "up"), ("downlink_bytes", "down")):
            if name in metrics:
                total = int(metrics[name].sum())
                shown[sign] = in_units(total)
        self._live.update(state.round, **shown)

    def end(
        self, state: SimulationState, metrics: Metrics, error: BaseException | None
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.__exit__(None, None, None)


def progress(
    label: str = "rounds",
    *,
    console: Console | None = None,
    lines_every: int | None = None,
) -> Callback:
    """Shows a bar with rounds, losses, bytes and the time left.

    Args:
      label: names the run.
      console: where it is shown; default: the notebook, or standard error if that is a
        terminal. Without either nothing is shown.
      lines_every: rounds between two lines on a console that is no terminal; default: a
        tenth of all.

    Returns:
      A callback.

    Example:
      >>> bar = progress("lora")  # simulator.run(state, 60, callbacks=[bar])
    """
    return _Progress(label, console, lines_every)


def _console() -> Console | None:
    """The notebook, a terminal, or None."""
    if "ipykernel" in sys.modules:
        return Console(force_jupyter=True)
    console = Console(stderr=True)
    return console if console.is_terminal else None


def _latest(metrics: Metrics, name: str) -> float | None:
    """The value of a column in the last round, None if it has none."""
    if name not in metrics or not len(metrics[name]):
        return None
    value = float(metrics[name][-1])
    return None if np.isnan(value) else value
