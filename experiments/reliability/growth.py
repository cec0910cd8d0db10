"""What a long run holds: memory, open files, threads and compiled programs."""

import gc
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_fm.callbacks import Callback

PROC = Path("/proc/self")
COMPILED = "/jax/core/compile/backend_compile_duration"


class Sample(NamedTuple):
    """What a process holds after a round.

    Attributes:
      round: the number of rounds done.
      memory: resident bytes.
      files: open file handles.
      threads: of the process.
      compiled: programs that were compiled since it began.
      arrays: of JAX that are alive.
    """

    round: int
    memory: int
    files: int
    threads: int
    compiled: int
    arrays: int


class _Sampled(Callback):
    """See `sampled`."""

    def __init__(self, every: int):
        self.every, self.compiled = every, 0
        self.found: list[Sample] = []

    def begin(self, *run: Any) -> None:
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, duration_secs: float, **more: Any) -> None:
        self.compiled += event == COMPILED

    def __call__(self, round: int, state: Any, metrics: Any) -> None:
        if round % self.every:
            return
        gc.collect()
        pages = int((PROC / "statm").read_text(encoding="utf-8").split()[1])
        sample = Sample(
            round=round,
            memory=pages * os.sysconf("SC_PAGE_SIZE"),
            files=len(os.listdir(PROC / "fd")),
            threads=len(os.listdir(PROC / "task")),
            compiled=self.compiled,
            arrays=len(jax.live_arrays()),
        )
        self.found.append(sample)


def sampled(every: int) -> _Sampled:
    """A callback that keeps a `Sample` every so many rounds, in its list `found`.

    Args:
      every: rounds between two of them.
    """
    return _Sampled(every)
