"""Runs that are gone on with as something else, or somewhere else."""

from collections.abc import Callable
from typing import Any

from fedjax_fm.experiments.reliability.bench import ROUNDS, Bench
from fedjax_fm.experiments.reliability.clock import make_older
from fedjax_fm.experiments.reliability.outcome import (
    SAME,
    Broke,
    Fault,
    Outcome,
    ends_well,
    refused,
)

AN_HOUR = 3600.0


def _as(words: tuple[str, ...], **problem: Any) -> Callable[[Bench], Outcome]:
    """A run that is gone on with under another setting, which the refusal must show."""

    def happens(bench: Bench) -> Outcome:
        name = f"other {' '.join(problem)}"
        before = bench.begun(name) / "metrics.jsonl"
        bytes_before = before.read_bytes()
        ended = bench.run(name, problem=problem)
        if before.read_bytes() != bytes_before:
            raise Broke("the refused session has changed metrics.jsonl")
        return refused(ended, "OtherRun", "then → now", *words)

    return happens


def _fewer_devices(bench: Bench) -> Outcome:
    bench.begun("fewer")
    one = bench.server(JAX_NUM_CPU_DEVICES="1")
    ended = one(bench.request("fewer", devices=None))
    found = refused(ended, "RunFolderError", "begun on 2 devices", "this machine has 1")
    bench.goes_on("fewer")
    return Outcome(f"{found.cell}; with 2 again {SAME}", found.says)


def _more_devices(bench: Bench) -> Outcome:
    bench.begun("more")
    eight = bench.server(JAX_NUM_CPU_DEVICES="8")
    ends_well(eight(bench.request("more", devices=None)))
    bench.is_same("more")
    return Outcome(f"the layout it was begun with, {SAME}")


def _hash_and_locale(bench: Bench) -> Outcome:
    """One round as begun, the others in a process of another kind."""
    bench.begun("locale", 1)
    other = bench.server(PYTHONHASHSEED="7", LC_ALL="C")
    ends_well(other(bench.request("locale")))
    bench.is_same("locale")
    return Outcome(SAME)


def _clock(bench: Bench) -> Outcome:
    """An hour back in every round, and newer checkpoints older than the others."""
    ends_well(bench.run("clock", ROUNDS - 1, clock=AN_HOUR))
    make_older(bench.folder / "clock" / "checkpoint", AN_HOUR)
    bench.goes_on("clock", clock=AN_HOUR)
    return Outcome(SAME)


FAULTS = (
    Fault("gone on with another rank", _as(("[6, 2]", "[6, 3]"), rank=3)),
    Fault("gone on with a wider model", _as(("[6, 4]", "[6, 5]"), width=5)),
    Fault("gone on with another learning rate", _as(("0.05", "0.1"), rate=0.1)),
    Fault("gone on with other data", _as(("data.x: other values",), data_seed=1)),
    Fault("gone on with another seed", _as(("seed: 5 → 6",), seed=6)),
    Fault("gone on with 1 device of 2", _fewer_devices),
    Fault("gone on with 8 devices", _more_devices),
    Fault("gone on with another PYTHONHASHSEED and the C locale", _hash_and_locale),
    Fault("a clock that goes back an hour a round; files of the wrong age", _clock),
)
