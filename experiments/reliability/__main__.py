"""Tries every fault on every method, in real processes, and writes what became of it.

    python -m fedjax_fm.experiments.reliability [PAGE] [--small] [--only WORDS]

In a page the tables stand between `<!-- NAME -->` and `<!-- end of NAME -->`, with the
names outcomes, words and growth. The exit code is 1 if something else happened than
what must.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from fedjax_fm.experiments.bench.pages import put_into
from fedjax_fm.experiments.reliability import (
    clients,
    damage,
    disk,
    kills,
    long,
    page,
    settings,
)
from fedjax_fm.experiments.reliability.bench import Bench, Broke, Fault, Outcome
from fedjax_fm.experiments.reliability.growth import Sample
from fedjax_fm.experiments.reliability.methods import METHODS

FAULTS = (
    *kills.FAULTS,
    *damage.FAULTS,
    *disk.FAULTS,
    *settings.FAULTS,
    *clients.FAULTS,
)
AT_ONCE = 2  # methods, each in processes of its own


class Tried(NamedTuple):
    """What became of one method's runs.

    Attributes:
      outcomes: by the fault's name.
      samples: of its long run.
    """

    outcomes: dict[str, Outcome]
    samples: list[Sample]


def tried(
    bench: Bench, faults: Sequence[Fault], is_first: bool, long_run: bool
) -> Tried:
    """Tries faults on one method, one after the other, and says so.

    Args:
      bench: of the method.
      faults: which.
      is_first: whether those are tried that are tried on the first method alone.
      long_run: whether a long run follows.
    """
    found: dict[str, Outcome] = {}
    samples: list[Sample] = []
    for number, fault in enumerate(faults, 1):
        if (fault.only_first and not is_first) or (fault.is_long and bench.small):
            continue
        started = time.perf_counter()
        try:
            outcome = fault.happens(bench)
        except Broke as error:
            outcome = Outcome(page.FAILED, str(error))
        says = outcome.says.replace(f"{bench.folder}{os.sep}", "")
        found[fault.name] = outcome._replace(says=says)
        seconds = f"{time.perf_counter() - started:.0f} s"
        what = (
            f"{number} of {len(faults)}, {bench.method}, {fault.name}: {outcome.cell}"
        )
        bad = f": {outcome.says}" if outcome.cell == page.FAILED else ""
        print(f"{what}{bad} ({seconds})", file=sys.stderr, flush=True)
    if long_run:
        try:
            samples = long.held(bench)
        except Broke as error:
            found["a long run"] = Outcome(page.FAILED, str(error))
    bench.close()
    return Tried(outcomes=found, samples=samples)


def main(given: Sequence[str]) -> int:
    """Tries, prints or writes the tables, and says whether all is as it must be.

    Args:
      given: words of the command line.

    Returns:
      The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m fedjax_fm.experiments.reliability")
    parser.add_argument("page", nargs="?", type=Path, help="where the tables go")
    parser.add_argument("--small", action="store_true", help="one method, few moments")
    parser.add_argument(
        "--only", default="", help="faults whose names have these words"
    )
    chosen = parser.parse_args(given)
    faults = [fault for fault in FAULTS if chosen.only in fault.name]
    if not faults:
        names = "; ".join(fault.name for fault in FAULTS)
        parser.error(f"no fault has {chosen.only!r} in its name; there are: {names}")
    methods = list(METHODS)[:1] if chosen.small else list(METHODS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        benches = [
            Bench(place / str(number), method, small=chosen.small)
            for number, method in enumerate(methods)
        ]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = [
                pool.submit(tried, bench, faults, bench is benches[0], not chosen.only)
                for bench in benches
            ]
            found = [one.result() for one in waiting]
    return _show(methods, faults, found, chosen.page)


def _show(
    methods: list[str], faults: list[Fault], found: list[Tried], place: Path | None
) -> int:
    """Prints the tables or writes them into a page; returns the exit code."""
    by_both = {
        (name, method): outcome
        for method, one in zip(methods, found, strict=True)
        for name, outcome in one.outcomes.items()
    }
    samples = {
        method: one.samples
        for method, one in zip(methods, found, strict=True)
        if one.samples
    }
    parts = {
        "outcomes": page.outcomes(faults, methods, by_both),
        "words": page.words(faults, methods, by_both),
        "growth": page.growth(samples),
    }
    for name, text in parts.items():
        if place is None:
            print(text, end="\n\n")
        else:
            put_into(place, name, text)
    failed = [key for key, one in by_both.items() if one.cell == page.FAILED]
    for name, method in failed:
        says = by_both[name, method].says
        print(f"FAILED: {method}: {name}: {says}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
