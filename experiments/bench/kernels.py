"""`fedjax-fm bench kernels`: array kernels on one core, beside what they replace."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from fedjax_fm.experiments.bench.environments import clean_environment, last_lines
from fedjax_fm.runs.settings import UsageError, nearest
from fedjax_fm.runs.terminal import for_tables

NAMES = (
    "topk-1e6",
    "topk-1e7",
    "topk-256x1e5",
    "quantize-4e6",
    "pack-4e6",
    "unpack-4e6",
    "uplink-1e6",
)
FIELDS = (
    "name",
    "seconds",
    "peer",
    "peer_seconds",
    "ratio",
    "floor_seconds",
    "peer_error",
)
SMOKE_PART = 100  # how much smaller the arrays of a smoke run are


class BenchError(ValueError):
    """The timing process ended before its answers were complete."""


def rows(
    names: Sequence[str], *, peers: bool, repeats: int, smoke: bool
) -> Iterator[dict[str, Any]]:
    """One row for each kernel and peer, as soon as it is known.

    Args:
      names: of the kernels.
      peers: also PyTorch, if it is installed here; lax.top_k and jax.random are always
        there.
      repeats: calls of each side, in turn, of which the median is reported.
      smoke: tiny sizes.

    Raises:
      BenchError: the timing process failed.
    """
    request = {
        "names": list(names),
        "repeats": repeats,
        "torch": peers,
        "part": SMOKE_PART if smoke else 1,
    }
    command = [
        sys.executable,
        "-m",
        "fedjax_fm.experiments.bench.kernels_side",
        json.dumps(request),
    ]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            encoding="utf-8",
            env=clean_environment(),
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            yield dict.fromkeys(FIELDS) | json.loads(line)
        if process.wait():
            complaints.seek(0)
            why = last_lines(complaints.read())
            raise BenchError(
                f"the timing process ended with code {process.returncode}: {why}"
            )


def run(
    only: Sequence[str], *, peers: bool, repeats: int, as_json: bool, smoke: bool
) -> int:
    """Prints what `rows` finds.

    Args:
      only: names of kernels; all if empty.
      peers: as for `rows`.
      repeats: as for `rows`.
      as_json: JSON lines instead of a table.
      smoke: as for `rows`.

    Returns:
      The exit code, 1 if a peer failed.

    Raises:
      UsageError: an unknown kernel, or no repeats.
    """
    if repeats < 1:
        raise UsageError(f"expected repeats >= 1, got repeats={repeats}")
    for name in only:
        if name not in NAMES:
            raise UsageError(nearest(name, NAMES, "kernel"))
    chosen = [name for name in NAMES if not only or name in only]
    console, found = for_tables(), []
    with contextlib.nullcontext() if as_json else console.status("measuring"):
        for row in rows(chosen, peers=peers, repeats=repeats, smoke=smoke):
            found.append(row)
            if as_json:
                print(json.dumps(row), flush=True)
    if not as_json:
        console.print(table(found))
    return 1 if any(row["peer_error"] for row in found) else 0


def table(found: Sequence[dict[str, Any]]) -> Table:
    """A table of milliseconds.

    Args:
      found: from `rows`.
    """
    made = Table(
        caption="milliseconds a call on one core, medians; ratio: peer / ours; floor: "
        "one read and write"
    )
    made.add_column("kernel", no_wrap=True)
    for heading in ("ours", "floor", "peer", "peer's", "ratio"):
        made.add_column(
            heading,
            justify="left" if heading == "peer" else "right",
            no_wrap=heading != "peer",
        )
    for row in found:
        ours, floor = _milliseconds(row["seconds"]), _milliseconds(row["floor_seconds"])
        theirs = row["peer_error"] or _milliseconds(row["peer_seconds"])
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        cells = (row["name"], ours, floor, row["peer"], theirs, ratio)
        made.add_row(*cells)
    return made


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}"
