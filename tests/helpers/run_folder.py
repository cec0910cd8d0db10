"""A run in a folder, as a program of one's own has it: progress, looks and a checkpoint."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from fedjax_fm import callbacks
from fedjax_fm.engine import SimulationState, Simulator
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.terminal import say
from fedjax_fm.types import Tree


def run_rounds(
    simulator: Simulator,
    delta: Tree,
    rounds: int,
    folder: RunFolder,
    *,
    label: str,
    console: Console,
    evaluate: Callable[[SimulationState], dict[str, float]] | None = None,
    evaluate_every: int = 5,
) -> SimulationState:
    """`Simulator.run` in a run folder, with progress, a look every so many rounds, and checkpoints.

    Args:
      simulator: laid out or not.
      delta: the tree that the run started from, also when it goes on.
      rounds: that are done in the end, those of earlier sessions counted; may be more than before.
      folder: see `callbacks.checkpoint`.
      label: names the run in what is printed.
      console: where it is printed.
      evaluate: state -> {column of metrics.jsonl: number}.
      evaluate_every: rounds between two looks and two checkpoints.

    Returns:
      The state in the end.

    Raises: as `callbacks.checkpoint`.
    """
    state = simulator.init(delta)
    looks: list[Any] = [
        callbacks.progress(label, console=console, lines_every=evaluate_every)
    ]
    if evaluate is not None:
        looks.append(lambda round, state, metrics: evaluate(state))
    looks.append(callbacks.checkpoint(folder, delta=delta, console=console))
    state, _ = simulator.run(state, rounds, every=evaluate_every, callbacks=looks)
    say(console, repr(simulator))  # with the layout that it was begun with
    return state
