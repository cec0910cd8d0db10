"""One live line a run: for people at a terminal a bar, elsewhere a plain line now and then."""

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
    """Shows `label`, rounds, free text and the time left.

    Args:
      total: rounds in all; done: rounds that an earlier session did.
      lines_every: without a terminal, a line every so many rounds.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        console: Console | None = None,
        lines_every: int = 5,
    ):
        self.label, self.total, self.done, self.lines_every = (
            label,
            total,
            done,
            lines_every,
        )
        self.console = console or Console()
        self._started, self._first = time.perf_counter(), done
        self._live: Progress | None = None

    def __enter__(self) -> "RoundProgress":
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
            )
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            live = Progress(
                *columns,
                TextColumn("{task.fields[text]}", markup=False),
                *times,
                console=self.console,
            )
            live.start()
            label, text = self._showable(self.label), self._showable("compiling …")
            self._task = live.add_task(
                label, total=self.total, completed=self.done, text=text
            )
            self._live = live
        else:
            say(
                self.console,
                f"{self.label}: {self.total - self.done} rounds to go; compiling …",
            )
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
        """`done` rounds are finished; `shown` is what to say of them."""
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
            say(
                self.console,
                f"{self.label} {done}/{self.total} · {text} · {spent:.0f} s, {left:.0f} s left",
            )

    def _showable(self, text: str) -> str:
        return showable(text, self.console.encoding)
