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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from fedjax_fm.experiments.bench.pages import check_places, put_into
from fedjax_fm.experiments.reliability import (
    clients,
    damage,
    disk,
    kills,
    page,
    settings,
)
from fedjax_fm.experiments.reliability.bench import Bench
from fedjax_fm.experiments.reliability.methods import METHODS
from fedjax_fm.experiments.reliability.outcome import (
    Fault,
)
from fedjax_fm.experiments.reliability.tries import Tried, tried

FAULTS = (
    *kills.FAULTS,
    *damage.FAULTS,
    *disk.FAULTS,
    *settings.FAULTS,
    *clients.FAULTS,
)
PARTS = ("outcomes", "words", "growth")  # of the page
AT_ONCE = 2  # methods, each in processes of its own


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
    if chosen.page is not None:
        if chosen.only:
            parser.error("a page gets every fault: no --only with it")
        check_places(chosen.page, *PARTS)
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
    texts = (
        page.outcomes(faults, methods, by_both),
        page.words(faults, methods, by_both),
        page.growth(samples),
    )
    for name, text in zip(PARTS, texts, strict=True):
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
