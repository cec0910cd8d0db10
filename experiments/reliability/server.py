"""Processes for sessions, as the one that tries faults has them in hand."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_fm.experiments.reliability.session import Request

MODULE = "fedjax_fm.experiments.reliability.forks"
QUICK = "--xla_backend_optimization_level=0"  # nothing is timed here


class Ended(NamedTuple):
    """How a session ended.

    Attributes:
      code: the process's exit code, -9 if a SIGKILL ended it.
      error: the class of what it raised; "" if nothing.
      message: what that says.
      rounds: done in the end, where nothing was raised.
      said: its warnings.
      samples: what it held after some rounds, see `growth.Sample`.
    """

    code: int
    error: str = ""
    message: str = ""
    rounds: int = 0
    said: str = ""
    samples: tuple[dict[str, Any], ...] = ()


class Server:
    """A process that forks one for each session.

    Args:
      folder: for compiled programs and what is printed to stderr.
      **variables: of its environment.
    """

    def __init__(self, folder: Path, **variables: str):
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "XLA_FLAGS": QUICK,
        }
        number = len(list(folder.glob("stderr-*.txt")))
        self.log = folder / f"stderr-{number}.txt"
        self._errors = open(self.log, "w", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            env=os.environ | kept | variables,
            text=True,
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def start(self, request: Request) -> None:
        """Begins a session; `end` waits for it."""
        line = json.dumps(request._asdict())
        print(line, file=self._process.stdin, flush=True)

    def end(self) -> Ended:
        """Waits until the session has ended.

        Raises:
          RuntimeError: the server itself has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            text = self.log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the server of sessions has ended: {text[-2000:]}")
        fields = json.loads(line)
        return Ended(**fields)

    @property
    def has_ended(self) -> bool:
        """Whether the session's ending is there, or will never be."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 0.05)
        return bool(ready)

    def __call__(self, request: Request) -> Ended:
        """Runs one session to its end."""
        self.start(request)
        return self.end()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()
