"""Checkpoints of a run, which goes on from them to the same bytes."""

import dataclasses
import os
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console

from fedjax_fm import checks
from fedjax_fm.callbacks.base import Callback, Metrics
from fedjax_fm.callbacks.history import metrics_of, rows_of
from fedjax_fm.engine import hosts
from fedjax_fm.engine.faults import RoundError
from fedjax_fm.engine.plan import Plan
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.runs import identity
from fedjax_fm.runs.checkpoint import Checkpoints
from fedjax_fm.runs.errors import Interrupted, OtherRun, RunFolderError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.lock import FolderLock
from fedjax_fm.runs.processes import is_first
from fedjax_fm.runs.terminal import say
from fedjax_fm.systems.counts import WORK, per_example
from fedjax_fm.types import Tree

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator


class _StopRequest:
    """Notes the first Ctrl-C or SIGTERM; a second Ctrl-C acts at once."""

    def __init__(self):
        self.wanted = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Takes both signals over, until `restore`."""
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, which alone may take signals
                break

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True

    def restore(self) -> None:
        """Gives the signals back to their handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class _Checkpoint(Callback):
    """See `checkpoint`."""

    def __init__(self, folder: RunFolder, delta: Tree | None, console: Console | None):
        self.folder, self.delta, self.console = folder, delta, console
        self._checkpoints: Checkpoints | None = None
        self._lock: FolderLock | None = None
        self._stop = _StopRequest()
        self._written = 0  # the last round in metrics.jsonl
        self._first = self._last = 0

    def restore(
        self, simulator: "Simulator", state: SimulationState
    ) -> tuple[SimulationState, Metrics] | None:
        folder = self.folder.made()
        self._lock = FolderLock(folder.path)
        self._lock.take()
        folder.up_to_date()
        self._first = state.round
        delta = state.delta if self.delta is None else self.delta
        mine = identity.identity_of(simulator, delta, state.key)
        checkpoints = self._checkpoints = Checkpoints(folder.path / "checkpoint")
        begun = checkpoints.latest is not None
        before = None
        if begun and folder.has(identity.FILE):
            before = folder.read_json(identity.FILE)
        if before is not None:
            # Once before anything is laid out for it, and later with the program.
            _refuse_another_run(folder, before, mine)
        if begun and folder.has("plan.json"):
            plan = plan_in(folder)
            if plan != simulator.plan:
                state = _laid_out(simulator, plan, state, delta)
        mine = mine | {"program": identity.program_of(simulator, state, delta)}
        warnings = []
        if before is not None:
            warnings = _refuse_another_run(folder, before, mine).warnings
        saved, damaged = checkpoints.restore_newest(state)
        hosts.meet("a checkpoint was read")  # before anything is written
        found = None
        if saved is None:
            # Rows without a checkpoint would be written twice.
            folder.write_text("metrics.jsonl", "")
        else:
            found = self._gone_on_with(state, saved)
            if before is None:
                warnings.append(
                    f"{folder.path} has no {identity.FILE}: that it is the same "
                    "run could not be checked"
                )
        folder.write_json("plan.json", simulator.engine.plan._asdict())
        folder.write_json(WORK, per_example(simulator)._asdict())
        if before is None:
            folder.write_json(identity.FILE, mine)
        done = state.round if saved is None else saved.round
        warnings += [f"{problem}; going on from round {done}" for problem in damaged]
        self._warn(warnings)
        return found

    def _gone_on_with(
        self, start: SimulationState, saved: SimulationState
    ) -> tuple[SimulationState, Metrics]:
        """The saved state and its metrics, if they are of a run from `start`."""
        saved_key = jax.random.key_data(saved.key)
        if not np.array_equal(saved_key, jax.random.key_data(start.key)):
            raise OtherRun(
                f"the run in {self.folder.path} was begun with another seed than this simulator's"
            )
        if saved.round < self._first:
            raise RunFolderError(
                f"the run in {self.folder.path} has {saved.round} rounds done, "
                f"but this state is of round {self._first}; take another folder, "
                "or begin with the state of simulator.init(delta)"
            )
        self._written = saved.round
        self.folder.keep_metrics(saved.round)
        rows = [row for row in self.folder.metrics() if row["round"] > self._first]
        return saved, metrics_of(rows)

    def begin(
        self,
        simulator: "Simulator",
        state: SimulationState,
        metrics: Metrics,
        last: int,
    ) -> None:
        if state.round > last:
            raise RunFolderError(
                f"the run in {self.folder.path} has {state.round} rounds done, "
                f"{last} were asked for"
            )
        self._last = last
        self._written = max(self._written, state.round)
        self._stop.listen()

    def tick(
        self, state: SimulationState, metrics: Metrics, seconds: float, due: bool
    ) -> None:
        for row in rows_of(metrics, self._first, since=self._written):
            self.folder.append_metrics(row)
        self._written = state.round
        self.folder.append_seconds(state.round, seconds)
        is_to_stop = hosts.any_says(self._stop.wanted)
        if due or is_to_stop:
            self._save(state)
        if is_to_stop and state.round < self._last:
            raise Interrupted(
                f"stopped after round {state.round} of {self._last}; everything so far is saved"
            )

    def end(
        self, state: SimulationState, metrics: Metrics, error: BaseException | None
    ) -> None:
        self._stop.restore()
        checkpoints, self._checkpoints = self._checkpoints, None
        lock, self._lock = self._lock, None
        is_written = state.round > self._first and self._written == state.round
        try:
            if checkpoints and isinstance(error, RoundError) and is_written:
                checkpoints.save(state.round, state)
        finally:
            if checkpoints:
                checkpoints.close()
            if lock:
                lock.give_back()

    def _save(self, state: SimulationState) -> None:
        assert self._checkpoints is not None
        self._checkpoints.save(state.round, state)

    def _warn(self, problems: list[str]) -> None:
        console = self.console or Console(stderr=True)
        for problem in problems if is_first() else ():
            say(console, f"warning: {problem}", style="yellow")


def checkpoint(
    folder: str | os.PathLike[str] | RunFolder,
    *,
    delta: Tree | None = None,
    console: Console | None = None,
) -> Callback:
    """Saves the run in a folder; the same call made again goes on from there.

    The folder gets checkpoints of the last two rounds with callbacks, metrics.jsonl
    with one row a round, the layout (plan.json), and identity.json with what makes the
    run this one: hyper-parameters, channels, sampler, seed, data, weights and the
    program of a round. Another run is refused. Ctrl-C and SIGTERM end the run after the
    round, with everything saved; a run that was killed goes on from its last
    checkpoint. Either way the metrics are those of a run that was never interrupted, to
    the byte. While it runs, no other run gets into the folder.

    Args:
      folder: a path or a folder, which is made if it is missing.
      delta: the tree that the run started from; default: that of the state that `run`
        is given.
      console: where warnings go; default standard error.

    Returns:
      A callback.

    Raises:
      OtherRun: when the run begins, the folder is of another run; says how they differ.
      DamagedCheckpoint: when the run begins, there are checkpoints, but none is whole.
      RunFolderError: when the run begins, more rounds are done than were asked for, a
        file is damaged, another run is at work in the folder, or a newer version has
        written it.
      Interrupted: in the run, after Ctrl-C or SIGTERM.

    Example:
      >>> import tempfile, optax, fedjax_fm as ffm
      >>> task = ffm.Task(lambda w, _, batch, key: ((batch["x"] - w) ** 2, {}))
      >>> algorithm = ffm.fedavg(task, optax.sgd(0.1), local_steps=1, batch_size=2)
      >>> people = ffm.Population.from_clients([{"x": np.ones(4, np.float32)}] * 2)
      >>> simulator = ffm.Simulator(algorithm, people, cohort_size=2)
      >>> saved, zero = checkpoint(tempfile.mkdtemp()), np.zeros((), np.float32)
      >>> state, _ = simulator.run(simulator.init(zero), 1, callbacks=[saved])
      >>> state, metrics = simulator.run(simulator.init(zero), 3, callbacks=[saved])
      >>> state.round, len(metrics["loss"])
      (3, 3)
    """
    place = folder
    if not isinstance(place, RunFolder):
        place = RunFolder(Path(place))
    return _Checkpoint(place, delta, console)


def _laid_out(
    simulator: "Simulator", plan: Plan, state: SimulationState, delta: Tree
) -> SimulationState:
    """The state for another layout.

    It is made anew in round 0, when it may have rows that only fill up devices.
    """
    simulator.lay_out(plan)
    if state.round:
        return state
    first = simulator.first_state(delta, state.key)
    return dataclasses.replace(state, carry=simulator.programs.placed(first))


def _refuse_another_run(
    folder: RunFolder, before: dict[str, Any], now: dict[str, Any]
) -> identity.Comparison:
    """How the two identities differ, if the difference is not that of another run."""
    try:
        found = identity.compare(before, now)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{folder.path / identity.FILE} is damaged: it lacks {error}"
        ) from error
    if found.refused:
        raise OtherRun(
            f"the run in {folder.path} was begun as another one; then → now: "
            f"{identity.shown(found.refused)}. Take another folder, or go on with "
            "what it was begun with. To go on in spite of it, remove "
            f"{identity.FILE} there"
        )
    return found


def plan_in(folder: RunFolder) -> Plan:
    """The layout that a run was begun with.

    Args:
      folder: with a plan.json.

    Returns:
      Its plan.

    Raises:
      RunFolderError: it is missing, damaged, or takes more devices than there are.
    """
    fields = folder.read_json("plan.json")
    try:
        plan = Plan(**fields)
        for name, value in plan._asdict().items():
            checks.whole(name, value, least=1)
    except (TypeError, ValueError) as error:
        raise RunFolderError(
            f"{folder.path / 'plan.json'} is damaged: {error}"
        ) from error
    if plan.n_devices > jax.device_count():
        raise RunFolderError(
            f"the run in {folder.path} was begun on {plan.n_devices} devices, "
            "which decides the order of its sums; this machine has "
            f"{jax.device_count()}. Go on where there are {plan.n_devices}; of CPUs "
            f"JAX_NUM_CPU_DEVICES={plan.n_devices} makes as many, of any number of cores"
        )
    return plan
