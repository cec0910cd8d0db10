"""One side of a comparison: a process that computes only when the command asks it to."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_fm.experiments.bench.environments import (
    PeerError,
    clean_environment,
    last_lines,
)

TIMEOUT = 1800.0  # seconds for one answer
GRACE = 20.0  # seconds to end by itself


class Side:
    """Starts `command WORKLOAD DATA RESULT` and speaks with it as protocol.py says.

    Args:
      command: words that start the process.
      workload: its name.
      data: file with the data.
      timeout: seconds for one answer.
      error: what is raised if the process ends, takes too long or answers something
        else; with the end of its standard error.

    Attributes:
      first_seconds: of the first call, compilation included.
      result: {name: array}, the trained parameters after it.
    """

    def __init__(
        self,
        command: Sequence[str],
        workload: str,
        data: Path,
        timeout: float = TIMEOUT,
        error: type[Exception] = PeerError,
    ):
        self.timeout, self.error = timeout, error
        self._folder = tempfile.TemporaryDirectory()
        place = Path(self._folder.name)
        result = place / "result.npz"
        self._errors = open(  # noqa: SIM115
            place / "stderr.txt", "w+", encoding="utf-8", errors="replace"
        )
        try:
            self._process = subprocess.Popen(
                [*command, workload, str(data), str(result)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                env=clean_environment(),
                start_new_session=True,
            )
        except OSError as failure:
            self._errors.close()
            self._folder.cleanup()
            raise error(f"cannot start {command[0]}: {failure}") from failure
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        try:
            self.first_seconds: float = self._answer("first_seconds")["first_seconds"]
            with np.load(result) as arrays:
                self.result = dict(arrays)
        except BaseException:
            self._kill()
            self.close()
            raise

    def call(self) -> dict:
        """Asks for one call.

        Returns:
          {"seconds": [seconds a round], "peak_rss_bytes": n}.
        """
        with contextlib.suppress(OSError):  # it has ended; the answer says why
            print(1, file=self._input, flush=True)
        return self._answer("seconds")

    def _answer(self, field: str) -> dict:
        """The next line of the process as JSON, which has to have a field."""
        late = threading.Event()
        watchdog = threading.Timer(self.timeout, lambda: (late.set(), self._kill()))
        watchdog.start()
        try:
            line = self._output.readline()
        finally:
            watchdog.cancel()
        if late.is_set():
            raise self.error(f"no answer within {self.timeout:g} s{self._complaint()}")
        if not line:
            code = self._process.wait()
            raise self.error(f"ended with code {code}{self._complaint()}")
        try:
            answer = json.loads(line)
            answer[field]
        except (ValueError, KeyError, TypeError):
            raise self.error(
                f"expected a JSON object with {field!r}, got {line.strip()!r}"
            ) from None
        return answer

    def _complaint(self) -> str:
        self._errors.flush()
        self._errors.seek(0)
        text = last_lines(self._errors.read())
        return f": {text}" if text else ""

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with all that it started

    def close(self) -> None:
        """Ends the process: first by the end of its input, then by force."""
        with contextlib.suppress(OSError):
            self._input.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self._kill()
        self._process.wait()
        self._output.close()
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind: type | None, *rest) -> None:
        if kind is not None:  # Ctrl-C, for example: do not wait for a round to end
            self._kill()
        self.close()
