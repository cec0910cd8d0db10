"""Runs an algorithm round by round inside a run folder: progress, metrics, checkpoints, interruption."""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import numpy as np
from rich.console import Console

from fedjax_fm import checks
from fedjax_fm.engine import Plan, RoundError, SimulationState, Simulator
from fedjax_fm.runs import identity
from fedjax_fm.runs.checkpoint import Checkpoints
from fedjax_fm.runs.errors import Interrupted, OtherRun, RunFolderError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.progress import RoundProgress
from fedjax_fm.runs.terminal import say
from fedjax_fm.types import Tree


class _StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop after the round; a second Ctrl-C acts at once."""

    def __init__(self):
        self.wanted = False

    def __enter__(self) -> "_StopRequest":
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: leave signals to whoever has them
                break
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
    rounds_per_row: int = 1,
) -> SimulationState:
    """Runs until `rounds` rounds are done, going on from the folder's newest checkpoint if there is one.

    Every row of metrics.jsonl holds a round's metrics, the bytes so far and, every `evaluate_every` rounds and at
    the end, what `evaluate` returns. A checkpoint is written at those rounds and when the run is interrupted. What is
    not the same in every repetition, the seconds, lies apart in seconds.jsonl, so that metrics.jsonl is, to the byte.
    The layout of the first part (plan.json) is used again, as it decides the order of float sums.

    A run goes on only as what it was begun as (identity.json): hyper-parameters, channels, sampler, seed, data, weights
    and the program of a round. `rounds` may grow.

    Args:
      simulator: laid out or not.
      delta: the tree that the run started from, also when it goes on.
      rounds: that are done in the end, those of earlier sessions counted.
      label: names the run in what is printed.
      evaluate: state -> {column of metrics.jsonl: number}.
      evaluate_every: rounds between two looks and two checkpoints.
      rounds_per_row: rounds that one dispatch and one row cover (sums for bytes, the last for the rest).

    Raises:
      DamagedCheckpoint: checkpoints are there, but none is whole (of two, the older one is used, with a warning).
      OtherRun: they belong to another configuration; says which differences there are.
      RunFolderError: more rounds are done than were asked for, or a file of the folder is damaged.
      Interrupted: after Ctrl-C or SIGTERM, with the rounds so far saved.
      NonFiniteClient, CohortOverflow: with the last good round saved.
    """
    checks.whole("rounds", rounds, least=0)
    checks.whole("evaluate_every", evaluate_every, least=1)
    checks.whole("rounds_per_row", rounds_per_row, least=1)
    mine = identity.identity_of(simulator, delta)
    checkpoints = Checkpoints(folder.path / "checkpoint")
    try:
        state = _begin_or_go_on(simulator, delta, rounds, folder, checkpoints, mine, console)
        rows = folder.metrics()
        up, down = (rows[-1][name] if rows else 0 for name in ("uplink_bytes_total", "downlink_bytes_total"))
        with RoundProgress(label, rounds, state.round, console, evaluate_every) as progress, _StopRequest() as stop:
            while state.round < rounds:
                started = time.perf_counter()
                state, metrics = simulator.run(state, min(rounds_per_row, rounds - state.round), donate=True)
                seconds = time.perf_counter() - started
                up, down = up + int(metrics["uplink_bytes"].sum()), down + int(metrics["downlink_bytes"].sum())
                row: dict[str, Any] = {
                    "round": state.round,
                    **{name: _number(values[-1]) for name, values in metrics.items()},
                }
                row |= {"uplink_bytes_total": up, "downlink_bytes_total": down}
                due = state.round % evaluate_every == 0 or state.round == rounds
                if due and evaluate is not None:
                    row |= evaluate(state)
                folder.append_metrics(row)
                folder.append_seconds(state.round, seconds)
                if due or stop.wanted:
                    checkpoints.save(state.round, (state, simulator.key))
                _show(progress, row, int(metrics["clients"].sum()) / seconds)
                if stop.wanted and state.round < rounds:
                    raise Interrupted(f"stopped after round {state.round} of {rounds}; everything so far is saved")
    except RoundError as error:
        if error.state.round and folder.metrics() and folder.metrics()[-1]["round"] == error.state.round:
            checkpoints.save(error.state.round, (error.state, simulator.key))
        raise
    finally:
        checkpoints.close()
    return state


def _begin_or_go_on(
    simulator: Simulator,
    delta: Tree,
    rounds: int,
    folder: RunFolder,
    checkpoints: Checkpoints,
    mine: dict[str, Any],
    console: Console,
) -> SimulationState:
    """The state to start from; afterwards the folder says what run it is, and holds no row after that state."""
    begun = checkpoints.latest is not None
    before = folder.read_json(identity.FILE) if begun and folder.has(identity.FILE) else None
    if before is not None:
        _refuse_another_run(folder, before, mine)  # before anything is laid out for it
    if begun and folder.has("plan.json"):
        simulator.lay_out(_plan_in(folder))
    state = simulator.init(delta)
    say(console, repr(simulator))
    mine = mine | {"program": identity.program_of(simulator, state, delta)}
    warnings = [] if before is None else _refuse_another_run(folder, before, mine).warnings
    saved, damaged = checkpoints.restore_newest((state, simulator.key))
    if saved is not None:
        state, key = saved
        if not np.array_equal(jax.random.key_data(key), jax.random.key_data(simulator.key)):
            raise OtherRun(f"the run in {folder.path} was begun with another seed than this simulator's")
        if state.round > rounds:
            raise RunFolderError(f"the run in {folder.path} has {state.round} rounds done, {rounds} were asked for")
        folder.keep_metrics(state.round)
        if before is None:
            warnings.append(f"{folder.path} has no {identity.FILE}: that it is the same run could not be checked")
    else:
        folder.write_text("metrics.jsonl", "")  # rows without a checkpoint would be written twice
    folder.write_json("plan.json", simulator.engine.plan._asdict())
    if before is None:
        folder.write_json(identity.FILE, mine)
    for problem in [*warnings, *(f"{problem}; going on from round {state.round}" for problem in damaged)]:
        say(console, f"warning: {problem}", style="yellow")
    return state


def _refuse_another_run(folder: RunFolder, before: dict[str, Any], now: dict[str, Any]) -> identity.Comparison:
    try:
        found = identity.compare(before, now)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{folder.path / identity.FILE} is damaged: it lacks {error}") from error
    if found.refused:
        raise OtherRun(
            f"the run in {folder.path} was begun as another one; then → now: {identity.shown(found.refused)}. Take another "
            f"folder, or go on with what it was begun with. To go on in spite of it, remove {identity.FILE} there"
        )
    return found


def _plan_in(folder: RunFolder) -> Plan:
    """The layout that a run was begun with."""
    fields = folder.read_json("plan.json")
    try:
        plan = Plan(**fields)
        for name, value in plan._asdict().items():
            checks.whole(name, value, least=1)
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{folder.path / 'plan.json'} is damaged: {error}") from error
    if plan.n_devices > jax.device_count():
        raise RunFolderError(
            f"the run in {folder.path} was begun on {plan.n_devices} devices, which decides the order of its sums; this "
            f"machine has {jax.device_count()}"
        )
    return plan


def _number(value: Any) -> Any:
    """JSON has no NaN: what is unknown (the loss of a round to which nobody came) is null."""
    return None if value != value else value


def _show(progress: RoundProgress, row: dict[str, Any], clients_per_second: float) -> None:
    accuracy, perplexity = row.get("eval_accuracy"), row.get("eval_perplexity")
    progress.update(
        row["round"],
        loss=None if row["loss"] is None else f"{row['loss']:.3f}",
        train_acc=f"{row['accuracy']:.3f}" if "accuracy" in row else None,
        eval_acc=f"{accuracy:.3f}" if accuracy is not None else None,
        eval_ppl=f"{perplexity:.2f}" if perplexity is not None else None,
        up=f"{row['uplink_bytes_total'] / 1e6:.2f} MB",
        down=f"{row['downlink_bytes_total'] / 1e6:.1f} MB",
        speed=f"{clients_per_second:.1f} clients/s",
    )
