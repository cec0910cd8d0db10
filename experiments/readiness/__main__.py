"""Writes what frameworks have for foundation models, ours by tests that it runs.

    python -m fedjax_fm.experiments.readiness [PAGE] [--run]

In a page the tables stand between `<!-- NAME -->` and `<!-- end of NAME -->`, with the
names matrix, features and sources. Our cells say "not run" without `--run`. With it the
tests of `ours.toml` are run (in a clone: a wheel has no tests), and the exit code is 1 if
one of them did not pass.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from fedjax_fm.experiments.bench.pages import check_places, put_into
from fedjax_fm.experiments.readiness import ours, page
from fedjax_fm.experiments.readiness.cells import frameworks

PARTS = ("matrix", "features", "sources")  # of the page


def main(given: Sequence[str]) -> int:
    """Prints or writes the tables, and says whether our tests passed.

    Args:
      given: words of the command line.

    Returns:
      The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m fedjax_fm.experiments.readiness")
    parser.add_argument("page", nargs="?", type=Path, help="where the tables go")
    parser.add_argument("--run", action="store_true", help="runs our named tests")
    chosen = parser.parse_args(given)
    if chosen.page is not None:
        check_places(chosen.page, *PARTS)
    found, own = frameworks(), ours.ours()
    run = _run(own, chosen.page) if chosen.run else None
    texts = (
        page.matrix(found, own, run),
        page.features(own, run),
        page.sources(found),
    )
    for name, text in zip(PARTS, texts, strict=True):
        if chosen.page is None:
            print(text, end="\n\n")
        else:
            put_into(chosen.page, name, text)
    bad = run is not None and set(run.outcomes.values()) != {"passed"}
    return 1 if bad else 0


def _run(own: dict[str, ours.Own], place: Path | None) -> ours.Run:
    """Our tests at the commit that lies there; the page itself may have changed."""
    commit = ours.commit([] if place is None else [place])
    tests = [one.test for one in own.values() if one.test]
    outcomes = ours.outcomes(tests)
    today = f"{datetime.date.today()}"
    return ours.Run(outcomes=outcomes, commit=commit, date=today)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
