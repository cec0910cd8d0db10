"""`fedjax-fm bench engine`: every workload, alone or beside its peers."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fedjax_fm.experiments.bench import floor
from fedjax_fm.experiments.bench.compare import measure
from fedjax_fm.experiments.bench.environments import (
    DEFAULT_CACHE,
    PEERS,
    PeerError,
    need_adapters,
    ours,
    theirs,
)
from fedjax_fm.experiments.bench.workload import Workload
from fedjax_fm.experiments.bench.workloads import WORKLOADS
from fedjax_fm.runs.settings import UsageError, nearest
from fedjax_fm.runs.terminal import for_tables

# A row has all of these; those that are not known are null.
FIELDS = (
    "name", "seconds", "peer", "peer_seconds", "ratio", "floor_seconds",
    "compile_seconds", "peer_compile_seconds", "peak_rss_bytes", "relative_distance", "peer_error",
    "floor_engine", "processor",
)  # fmt: skip


def choose(only: Sequence[str]) -> list[Workload]:
    """The workloads of some names.

    Args:
      only: names; all workloads if empty.

    Raises:
      UsageError: an unknown workload; names the nearest one.
    """
    for name in only:
        if name not in WORKLOADS:
            raise UsageError(nearest(name, WORKLOADS, "workload"))
    return [
        workload for name, workload in WORKLOADS.items() if not only or name in only
    ]


def rows(
    workloads: Sequence[Workload],
    *,
    peers: bool,
    repeats: int,
    smoke: bool,
    cache: Path = DEFAULT_CACHE,
) -> Iterator[dict[str, Any]]:
    """One row for each workload and peer, as soon as it is known.

    A peer that fails has a row with `peer_error`.

    Args:
      workloads: that are timed.
      peers: also time other libraries; workloads without a peer are timed alone.
      repeats: calls of each side, of which the median is reported.
      smoke: tiny sizes.
      cache: folder of the peers' environments.
    """
    for workload in workloads:
        data = workload.make(smoke)
        rate = floor.rate_of(workload, data)
        known = {
            "name": workload.name,
            "floor_seconds": workload.flop(data) / rate.flop_per_second,
            "floor_engine": rate.engine,
            "processor": floor.processor(),
        }
        for peer in (workload.peers if peers else ()) or (None,):
            if peer is None:
                found = measure(workload.name, data, ours(), repeats=repeats)
            else:
                known["peer"] = PEERS[peer].title
                try:
                    found = measure(
                        workload.name,
                        data,
                        ours(),
                        theirs(peer, cache),
                        repeats=repeats,
                    )
                except PeerError as error:
                    found = {"peer_error": str(error)}
            yield dict.fromkeys(FIELDS) | known | found


def engine(
    only: Sequence[str],
    *,
    peers: bool,
    repeats: int,
    as_json: bool,
    smoke: bool,
    cache: Path = DEFAULT_CACHE,
) -> int:
    """Prints what `rows` finds.

    Args:
      only: names of workloads; all if empty.
      peers: as for `rows`.
      repeats: as for `rows`.
      as_json: JSON lines instead of a table.
      smoke: as for `rows`.
      cache: as for `rows`.

    Returns:
      The exit code, 1 if a peer failed.

    Raises:
      UsageError: an unknown workload, no repeats, or peers whose scripts are missing.
    """
    if repeats < 1:
        raise UsageError(f"expected repeats >= 1, got repeats={repeats}")
    chosen = choose(only)
    if peers and any(workload.peers for workload in chosen):
        need_adapters()
    console, found = for_tables(), []
    with contextlib.nullcontext() if as_json else console.status("measuring"):
        for row in rows(chosen, peers=peers, repeats=repeats, smoke=smoke, cache=cache):
            found.append(row)
            if as_json:
                print(json.dumps(row), flush=True)
    failed = [row for row in found if row["peer_error"]]
    if not as_json:
        console.print(table(found))
        for row in failed:
            console.print(
                f"{row['name']}, {row['peer']}: {row['peer_error']}",
                style="red",
                markup=False,
                soft_wrap=True,
            )
    return 1 if failed else 0


def table(found: Sequence[dict[str, Any]]) -> Table:
    """A table of times.

    Args:
      found: from `rows`.
    """
    made = Table(
        box=box.SIMPLE,
        caption=f"{floor.processor()}. Time of a round, medians; ratio: peer / ours; "
        "MB: our peak; floor: the round's matrix products at the best rate that this "
        "machine shows for their shapes, and in which library",
    )
    made.add_column("workload", no_wrap=True)
    for heading in (
        "ours",
        "floor",
        "rate of",
        "peer",
        "peer's",
        "ratio",
        "compile",
        "MB",
    ):
        made.add_column(
            heading,
            justify="left" if heading == "peer" else "right",
            no_wrap=heading != "peer",
        )
    for row in found:
        peak = row["peak_rss_bytes"]
        cells = (
            row["name"],
            shown_seconds(row["seconds"]),
            shown_seconds(row["floor_seconds"]),
            row["floor_engine"] or "",
            row["peer"] or "",
            "failed" if row["peer_error"] else shown_seconds(row["peer_seconds"]),
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            shown_seconds(row["compile_seconds"]),
            "" if peak is None else f"{peak / 1e6:.0f}",
        )
        made.add_row(*cells)
    return made


def shown_seconds(value: float | None) -> str:
    """0.00123 -> '1.23 ms'.

    Args:
      value: seconds; None: nothing is shown.
    """
    if value is None:
        return ""
    unit, factor = "µs", 1e6
    if value >= 0.9995:
        unit, factor = "s", 1
    elif value * 1e3 >= 0.9995:
        unit, factor = "ms", 1e3
    return f"{value * factor:.3g} {unit}"
