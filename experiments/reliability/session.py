"""One session of a run: begins it in a folder, or goes on with it, and says how it ended."""

import io
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from fedjax_fm import callbacks
from fedjax_fm.experiments.reliability import clock, growth, methods
from fedjax_fm.experiments.reliability.acts import act
from fedjax_fm.experiments.reliability.fuse import Fuse, Moment, die, watch
from fedjax_fm.experiments.reliability.problem import Problem
from fedjax_fm.runs import identity


class Request(NamedTuple):
    """What a session is to do; goes through JSON.

    Attributes:
      folder: of the run.
      method: one of `methods.METHODS`.
      rounds: that are done in the end.
      problem: fields of `problem.Problem` that differ from its defaults.
      moment: fields of a `Moment`; None: nothing is done to the session.
      devices: of the layout; None: chosen by the engine.
      every: rounds between two checkpoints.
      sampled: rounds between two looks at memory and files, a multiple of `every`; 0:
        none are taken.
      clock: seconds by which the clock goes back after every round.
    """

    folder: str
    method: str
    rounds: int
    problem: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    moment: dict[str, Any] | None = None
    devices: int | None = 2
    every: int = 1
    sampled: int = 0
    clock: float = 0.0


def go(request: Request) -> dict[str, Any]:
    """Runs the session.

    Args:
      request: what to do.

    Returns:
      {"rounds": done in the end, "said": warnings, "samples": of `growth.Sample`}.

    Raises: whatever the run raises.
    """
    moment = Moment(**request.moment) if request.moment else None
    folder = Path(request.folder)
    fuse = Fuse(moment, act(moment.act, folder) if moment else die)
    watch(fuse)
    at_work = moment is not None and moment.event == "work"
    if at_work:
        # A program with a callback in it is another one; what such a session computes
        # is lost with it.
        identity.FILE = "identity-with-callback.json"
    simulator, delta = methods.simulator(
        request.method,
        Problem(**request.problem),
        devices=request.devices,
        tick=(lambda: fuse("work")) if at_work else None,
    )
    said = io.StringIO()

    def norm(round_index: int, state: Any, metrics: Any) -> dict[str, float]:
        """A number that tells one model from another."""
        fuse("look", round_index)
        return {"delta_b": float(abs(state.delta["b"]).sum())}

    looks: list[Any] = [norm]
    samples = growth.sampled(request.sampled)
    if request.sampled:
        looks.append(samples)
    if request.clock:
        looks.append(clock.going_back(request.clock))
    console = Console(file=said, width=10_000)
    looks.append(callbacks.checkpoint(request.folder, delta=delta, console=console))
    state = simulator.init(delta)
    state, _ = simulator.run(
        state, request.rounds, every=request.every, callbacks=looks
    )
    return {
        "rounds": state.round,
        "said": said.getvalue(),
        "samples": [sample._asdict() for sample in samples.found],
    }
