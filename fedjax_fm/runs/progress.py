"""Progress of a run: a bar at a terminal, elsewhere a plain line every few rounds."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedjax_fm.runs.terminal import say, showable


class RoundProgress:
    """Shows a label, rounds, free text and the time left; a context manager.

    Args:
      label: names the run.
      total: rounds in all.
      done: rounds of them that an earlier session did.
      console: where it is shown; default standard output.
      lines_every: rounds between two lines where the console is no terminal.

    Example:
      >>> with RoundProgress("demo", total=2, console=Console(quiet=True)) as progress:
      ...     progress.update(1, loss="0.5")
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        console: Console | None = None,
        lines_every: int = 5,
    ):
        self.label = label
        self.total = total
        self.done = done
        self.lines_every = lines_every
        self.console = console or Console()
        self._started, self._first = time.perf_counter(), done
        self._live: Progress | None = None

    def __enter__(self) -> "RoundProgress":
        if self.console.is_terminal:
            live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            live.start()
            label, text = self._showable(self.label), self._showable("compiling …")
            self._task = live.add_task(
                label, total=self.total, completed=self.done, text=text
            )
            self._live = live
        else:
            to_go = self.total - self.done
            say(self.console, f"{self.label}: {to_go} rounds to go; compiling …")
        return self

    def __exit__(
        self,
        kind: type | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: int, **shown: Any) -> None:
        """Shows that more rounds are finished.

        Args:
          done: rounds that are finished in all.
          **shown: what to say of them, {name: value}; None is left out.
        """
        self.done = done
        text = " · ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in shown.items()
            if value is not None
        )
        if self._live is not None:
            self._live.update(self._task, completed=done, text=self._showable(text))
        elif done % self.lines_every == 0 or done == self.total:
            spent = time.perf_counter() - self._started
            left = spent / max(done - self._first, 1) * (self.total - done)
            seconds = f"{spent:.0f} s, {left:.0f} s left"
            say(self.console, f"{self.label} {done}/{self.total} · {text} · {seconds}")

    def _showable(self, text: str) -> str:
        return showable(text, self.console.encoding)
