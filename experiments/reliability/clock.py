"""A clock that goes back while a run is under way."""

import datetime
import os
import time
from pathlib import Path
from typing import Any

from fedjax_fm.callbacks import Callback


class _GoingBack(Callback):
    """See `going_back`."""

    def __init__(self, seconds: float):
        self.seconds, self.behind = seconds, 0.0
        self._time, self._time_ns = time.time, time.time_ns

    def begin(self, *run: Any) -> None:
        clock, original = self, datetime.datetime

        class Behind(original):
            """The class of moments, whose now is early."""

            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return original.fromtimestamp(time.time(), tz)

        def now() -> float:
            return clock._time() - clock.behind

        def now_ns() -> int:
            return clock._time_ns() - int(clock.behind * 1e9)

        time.time, time.time_ns = now, now_ns
        datetime.datetime = Behind

    def __call__(self, round: int, state: Any, metrics: Any) -> None:
        self.behind += self.seconds


def going_back(seconds: float) -> Callback:
    """A callback after which Python's clock of the day is behind by more each round.

    The system's own clock is not set: other programs use it.

    Args:
      seconds: each time.
    """
    return _GoingBack(seconds)


def make_older(folder: Path, seconds: float) -> None:
    """Makes the files of newer checkpoints older than those of earlier ones.

    Args:
      folder: with a folder for each round.
      seconds: by which each round is older than the one before.
    """
    now = time.time()
    for place in folder.iterdir():
        behind = now - seconds * int(place.name)
        for path in (*place.rglob("*"), place):
            os.utime(path, (behind, behind))
