"""The rounds of `Simulator.run` with callbacks between them."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fedjax_fm import checks
from fedjax_fm.callbacks.base import Callback, CallbackError, Metrics, Stop, name_of
from fedjax_fm.callbacks.history import History
from fedjax_fm.engine import hosts
from fedjax_fm.engine.faults import RoundError
from fedjax_fm.engine.guarantee import check_rounds
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.runs.errors import Interrupted, UserError

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator

TICK = 0.5  # seconds of rounds between two ticks; fewer where callbacks are due


class _Rounds:
    """The state of a run between its callbacks."""

    def __init__(
        self,
        simulator: "Simulator",
        state: SimulationState,
        history: History,
        callbacks: Sequence[Any],
    ):
        self.simulator, self.state = simulator, state
        self.history, self.callbacks = history, callbacks
        self.whole = [one for one in callbacks if isinstance(one, Callback)]

    @property
    def metrics(self) -> Metrics:
        return self.history.metrics

    def guarded(self, callback: Any, call: Callable[[], Any]) -> Any:
        """Calls; wraps an error into one that names the callback and holds the state."""
        try:
            return call()
        except (Stop, Interrupted, UserError, RoundError):
            raise
        except Exception as error:
            raise CallbackError(name_of(callback), self.state, self.metrics) from error

    def look(self) -> bool:
        """Calls every callback, and returns whether one of them has raised `Stop`."""
        enough = False
        for callback in self.callbacks:

            def call(callback: Any = callback) -> None:
                found = callback(self.state.round, self.state, self.metrics)
                self.history.put(found, name_of(callback))

            try:
                self.guarded(callback, call)
            except Stop:
                enough = True
        return enough

    def tick(self, seconds: float, due: bool) -> None:
        """Calls the `tick` of every callback that has one."""
        for callback in self.whole:

            def call(callback: Callback = callback) -> None:
                callback.tick(self.state, self.metrics, seconds, due)

            self.guarded(callback, call)


def run_with_callbacks(
    simulator: "Simulator",
    state: SimulationState,
    rounds: int,
    every: int,
    callbacks: Sequence[Any],
    donate: bool,
) -> tuple[SimulationState, Metrics]:
    """`Simulator.run` with callbacks.

    Args:
      simulator: that runs.
      state: where the run begins, unless a callback restores a later one.
      rounds: how many, counted from `state`.
      every: rounds between two calls of the callbacks.
      callbacks: functions of (round, state, metrics), or objects of `Callback`.
      donate: whether the first rounds may reuse the memory of `state`.

    Returns:
      (state, metrics) of all rounds from that of `state`, those of an earlier part that
      was restored among them.

    Raises:
      TypeError: a callback cannot be called, or returned something else than numbers.
      CallbackError: a callback failed.
      RoundError: a round failed; holds the metrics of those before.
    """
    _check(callbacks)
    last = state.round + rounds
    run = _Rounds(simulator, state, History(state.round), callbacks)
    error: BaseException | None = None
    try:
        _restore(run)
        done = run.state.round
        check_rounds(simulator.algorithm.privacy, done, max(last - done, 0))
        if _begin(run, last):
            _go(run, last, every, donate or run.state is not state)
    except BaseException as raised:
        error = raised
        if isinstance(raised, RoundError):
            raised.metrics = run.metrics
        raise
    finally:
        for callback in run.whole:
            callback.end(run.state, run.metrics, error)
    return run.state, run.metrics


def _check(callbacks: Sequence[Any]) -> None:
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(
                "expected callbacks as functions of (round, state, metrics), got "
                f"{checks.shown(callback)}"
            )


def _restore(run: _Rounds) -> None:
    """Takes the run to where an earlier part of it ended, if there is one."""
    state = run.state
    for callback in run.whole:
        found = callback.restore(run.simulator, state)
        if found is not None:
            run.state, metrics = found
            run.history = History(state.round, metrics)


def _begin(run: _Rounds, last: int) -> bool:
    """Calls the `begin` of the callbacks; whether there are rounds to do."""
    goes_on = run.state.round < last
    for callback in run.whole:
        try:
            callback.begin(run.simulator, run.state, run.metrics, last)
        except Stop:
            goes_on = False
    return goes_on


def _go(run: _Rounds, last: int, every: int, donate: bool) -> None:
    """Does the rounds, with looks every `every` of them and ticks in between."""
    at_once = 1  # rounds between two ticks
    # A plain function may keep the state that it is given, whose memory stays then.
    kept = len(run.whole) < len(run.callbacks)
    while run.state.round < last:
        next_look = min(last, (run.state.round // every + 1) * every)
        n = hosts.first_says(min(at_once, next_look - run.state.round))
        started = time.perf_counter()
        try:
            run.state, found = run.simulator.run(run.state, n, donate=donate)
        except RoundError as error:
            run.state = error.state
            run.history.extend(error.metrics)
            run.tick(time.perf_counter() - started, False)
            raise
        except Exception as error:
            error.add_note(f"fedjax_fm: {_which(run.state.round, n)}")
            raise
        seconds = time.perf_counter() - started
        run.history.extend(found)
        due = run.state.round == next_look
        enough = run.look() if due else False
        run.tick(seconds, due)
        if enough:
            return
        donate = not (due and kept)
        fitting = int(TICK * n / seconds) if seconds else 2 * at_once
        at_once = max(1, min(2 * at_once, fitting))


def _which(done: int, n: int) -> str:
    """The rounds in which something was raised, in words."""
    first, last = done + 1, done + n
    return f"in round {first}" if n == 1 else f"in one of the rounds {first} to {last}"
