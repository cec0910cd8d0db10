"""`fedjax-fm bench engine`.

Every workload, alone or beside its peers, as a table or as JSON lines.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedjax_fm.experiments.bench import gemm
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

# A row has all of these, null where there is nothing to say.
FIELDS = (
    "name", "seconds", "peer", "peer_seconds", "ratio", "floor_seconds",
    "compile_seconds", "peer_compile_seconds", "peak_rss_bytes", "relative_distance", "peer_error",
)  # fmt: skip


def choose(only: Sequence[str]) -> list[Workload]:
    """The workloads of these names, all by default; UsageError with the nearest one."""
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
      peers: also time the other libraries; those without a counterpart are timed alone
        all the same.
      repeats: calls of each side, of which the median is reported.
      smoke: tiny sizes.
      cache: folder of the peers' environments.
    """
    rate = gemm.flop_per_second()
    for workload in workloads:
        data = workload.make(smoke)
        known = {"name": workload.name, "floor_seconds": workload.flop(data) / rate}
        for peer in (workload.peers if peers else ()) or (None,):
            if peer is None:
                found = measure(workload.name, data, ours(), repeats=repeats)
            else:
                known["peer"] = PEERS[peer].title
                try:
                    found = measure(
                        workload.name, data, ours(), theirs(peer, cache), repeats
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
    """Prints what `rows` finds; returns the exit code, 1 if a peer failed."""
    if repeats < 1:
        raise UsageError(f"expected repeats >= 1, got repeats={repeats}")
    chosen = choose(only)
    if peers and any(workload.peers for workload in chosen):
        need_adapters()
    console, found = Console(), []
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
    """Times as people read them."""
    made = Table(
        box=box.SIMPLE,
        caption="time of a round, medians; ratio: peer / ours; MB: our peak; floor: "
        "matrix products at this machine's rate",
    )
    made.add_column("workload", no_wrap=True)
    for heading in ("ours", "floor", "peer", "peer's", "ratio", "compile", "MB"):
        made.add_column(
            heading,
            justify="left" if heading == "peer" else "right",
            no_wrap=heading != "peer",
        )
    for row in found:
        peak = row["peak_rss_bytes"]
        made.add_row(
            row["name"],
            _seconds(row["seconds"]),
            _seconds(row["floor_seconds"]),
            row["peer"] or "",
            "failed" if row["peer_error"] else _seconds(row["peer_seconds"]),
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            _seconds(row["compile_seconds"]),
            "" if peak is None else f"{peak / 1e6:.0f}",
        )
    return made


def _seconds(value: float | None) -> str:
    """0.00123 -> '1.23 ms'."""
    if value is None:
        return ""
    unit, factor = next(
        ((u, f) for u, f in (("s", 1), ("ms", 1e3)) if value * f >= 0.9995), ("µs", 1e6)
    )
    return f"{value * factor:.3g} {unit}"
