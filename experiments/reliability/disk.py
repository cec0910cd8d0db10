"""Disks that are full, and places where nothing can be written."""

from fedjax_fm.experiments.reliability.bench import Bench
from fedjax_fm.experiments.reliability.fuse import Moment
from fedjax_fm.experiments.reliability.outcome import (
    SAME,
    Broke,
    Fault,
    Outcome,
    ends_well,
    refused,
)


def _in_round_2(act: str) -> Moment:
    return Moment(event="row written", round=2, act=act)


def _no_larger_files(bench: Bench) -> Outcome:
    """RLIMIT_FSIZE: the system refuses every larger file, also those of other threads."""
    ended = bench.run("limited", at=Moment(event="disk", round=2, act="fill disk"))
    found = refused(ended, ended.error, "cannot write", "larger than it may be")
    bench.goes_on("limited")
    return Outcome(f"{found.cell}, then {SAME}", found.says)


def _full(bench: Bench) -> Outcome:
    """A file on the device that is always full."""
    run = bench.folder / "full"
    ended = bench.run("full", at=_in_round_2("fill rows"))
    found = refused(ended, "RunFolderError", "no space is left on the device", "safe")
    (run / "seconds.kept").replace(run / "seconds.jsonl")
    bench.goes_on("full")
    return Outcome(f"{found.cell}, then {SAME}", found.says)


def _unwritable(bench: Bench) -> Outcome:
    """The folder of checkpoints comes to lie where nothing can be made, by root neither."""
    run = bench.folder / "unwritable"
    ended = bench.run("unwritable", at=_in_round_2("make unwritable"))
    found = refused(ended, "CheckpointError", "cannot write", "up to 1 are safe")
    (run / "checkpoint").unlink()
    (run / "checkpoint.kept").rename(run / "checkpoint")
    bench.goes_on("unwritable")
    return Outcome(f"{found.cell}, then {SAME}", found.says)


def _no_place(bench: Bench) -> Outcome:
    (bench.folder / "a file").touch()
    inside = bench.run("a file/run")
    refused(inside, "RunFolderError", "a file/run")
    return refused(bench.run("/proc/self/run"), "RunFolderError", "/proc/self/run")


def _two_at_once(bench: Bench) -> Outcome:
    """A second run gets into the folder of one that is at work in round 2."""
    waits = bench.folder / "two" / "waits"
    first = bench.server()
    first.start(bench.request("two", at=Moment(event="row", round=2, act="wait")))
    second = bench.server(PYTHONHASHSEED="7", LC_ALL="C")
    while not waits.exists():
        if first.has_ended:
            raise Broke(f"the first run has ended: {first.end()}")
    try:
        ended = second(bench.request("two"))
    finally:
        waits.unlink()
    ends_well(first.end())
    bench.is_same("two")
    found = refused(ended, "RunFolderError", "another run is at work")
    return Outcome(f"the second: {found.cell}; the first: {SAME}", found.says)


FAULTS = (
    Fault("no file may grow (RLIMIT_FSIZE) from round 2 on", _no_larger_files),
    Fault("no space is left (/dev/full) from round 2 on", _full),
    Fault("checkpoints cannot be written from round 2 on", _unwritable),
    Fault("a place where no folder can be made: below a file, in /proc", _no_place),
    Fault("two runs in one folder at once", _two_at_once),
)
