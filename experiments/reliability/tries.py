"""Faults that are tried on one method, one after the other."""

import os
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from fedjax_fm.experiments.reliability import long
from fedjax_fm.experiments.reliability.bench import Bench
from fedjax_fm.experiments.reliability.growth import Sample
from fedjax_fm.experiments.reliability.outcome import Broke, Fault, Outcome
from fedjax_fm.experiments.reliability.page import FAILED


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
    try:
        for number, fault in enumerate(faults, 1):
            if fault.only_first and (bench.small or not is_first):
                continue
            started = time.perf_counter()
            outcome = found[fault.name] = _outcome(fault, bench)
            seconds = f"{time.perf_counter() - started:.0f} s"
            where = f"{number} of {len(faults)}, {bench.method}, {fault.name}"
            _say(f"{where}: {outcome.cell} ({seconds})")
        if long_run:
            try:
                samples = long.held(bench)
            except Broke as error:
                found["a long run"] = Outcome(FAILED, str(error))
            _say(f"{bench.method}, a long run: {len(samples)} looks")
    finally:
        bench.close()
    return Tried(outcomes=found, samples=samples)


def _outcome(fault: Fault, bench: Bench) -> Outcome:
    """What becomes of a fault, without the paths of this machine."""
    try:
        outcome = fault.happens(bench)
    except Broke as error:
        outcome = Outcome(FAILED, str(error))
    says = outcome.says.replace(f"{bench.folder}{os.sep}", "")
    return outcome._replace(says=says)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
