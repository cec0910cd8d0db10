"""The protocol between the command and a side of a comparison; needs numpy only.

    SCRIPT WORKLOAD DATA.npz RESULT.npz

A side reads the data, does a first call, writes the parameters after it to RESULT.npz
and prints `{"first_seconds": s}`. Then each line on its standard input is a number of
calls; it answers one line `{"seconds": [seconds a round, ...], "peak_rss_bytes": n}`.
It ends with its input. In between it computes nothing.
"""

import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Data(NamedTuple):
    """Everything that both sides must agree on.

    There are n examples of N clients; client k has offsets[k] to offsets[k + 1].
    """

    examples: dict  # {name: [n, ...]}
    offsets: np.ndarray  # int64[N + 1]
    start: dict  # {name: array}: what is trained and exchanged
    frozen: dict = {}  # noqa: RUF012  (never changed)
    epochs: int = 1
    batch_size: int = 1
    learning_rate: float = 0.1
    rounds: int = 1  # of a call

    @property
    def n_clients(self):
        """How many clients there are."""
        return len(self.offsets) - 1

    @property
    def sizes(self):
        """int64[N], examples of each client."""
        return np.diff(self.offsets)

    def client(self, k):
        """The examples of one client.

        Args:
          k: its number.
        """
        own = slice(self.offsets[k], self.offsets[k + 1])
        return {name: array[own] for name, array in self.examples.items()}

    @property
    def is_full_batch(self):
        """Whether one batch holds a client, so that no shuffle can make two sides differ."""
        return int(self.sizes.max()) <= self.batch_size

    def full_batch(self, n_clients=4):
        """The first clients, each with one batch an epoch.

        Args:
          n_clients: how many.
        """
        offsets = self.offsets[: n_clients + 1]
        examples = {name: array[: offsets[-1]] for name, array in self.examples.items()}
        largest = int(np.diff(offsets).max())
        return self._replace(examples=examples, offsets=offsets, batch_size=largest)

    def save(self, path):
        """Writes an .npz: trees as `field.name`, the rest as it is.

        Args:
          path: of the file.
        """
        arrays = {}
        for field, value in self._asdict().items():
            if isinstance(value, dict):
                arrays |= {f"{field}.{name}": array for name, array in value.items()}
            else:
                arrays[field] = value
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Args:
          path: of the file.
        """
        fields: dict[str, Any] = {"frozen": {}}
        with np.load(path) as stored:
            for key in stored.files:
                field, dot, name = key.partition(".")
                value = stored[key]
                if dot:
                    fields.setdefault(field, {})[name] = value
                else:
                    fields[field] = value if value.ndim else value.item()
        return cls(**fields)


def serve(build, arguments=None):
    """Speaks the protocol as a side.

    Args:
      build: `(workload, Data) -> (run, parameters)`; `run(rounds)` returns when all is
        computed, and goes on from where the call before ended; `parameters() -> {name:
        array}`, by the names and in the layout of `Data.start`.
      arguments: (workload, data, result); default the command line's.
    """
    workload, data_path, result_path = arguments or sys.argv[1:]
    answers = _own_stdout()
    data = Data.load(data_path)
    started = time.perf_counter()
    run, parameters = build(workload, data)
    run(data.rounds)
    first = time.perf_counter() - started
    found = parameters()
    results: dict[str, Any] = {name: np.asarray(value) for name, value in found.items()}
    np.savez(result_path, **results)
    print(json.dumps({"first_seconds": first}), file=answers, flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            run(data.rounds)
            spent = time.perf_counter() - started
            seconds.append(spent / data.rounds)
        answer = {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}
        print(json.dumps(answer), file=answers, flush=True)


def _own_stdout():
    """The standard output for answers alone; all other prints go to standard error."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "w", encoding="utf-8")


def peak_rss_bytes():
    """The largest memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    # getrusage may report the size of the parent that started this process.
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
