"""Processes that are ended by a signal."""

from collections.abc import Sequence

from fedjax_fm.experiments.reliability.bench import ROUNDS, Bench
from fedjax_fm.experiments.reliability.compare import difference
from fedjax_fm.experiments.reliability.fuse import Moment
from fedjax_fm.experiments.reliability.outcome import (
    SAME,
    Broke,
    Fault,
    Outcome,
    ends_well,
    killed,
    refused,
)

# Files that Orbax opens, renames or removes for one checkpoint: 1 to about 20.
STAGES = (1, 6, 11, 16)


def _killed_at(bench: Bench, name: str, moments: Sequence[Moment]) -> Outcome:
    """One run that is killed at each of these moments, one after the other."""
    moments = moments[:1] if bench.small else moments
    for moment in moments:
        killed(bench.run(name, at=moment))
    bench.goes_on(name)
    times = "once" if len(moments) == 1 else f"{len(moments)} times"
    return Outcome(f"killed {times}, {SAME}")


def _inside(bench: Bench) -> Outcome:
    # One moment is enough for what is compiled anew each time, a program with a callback;
    # a test kills runs in every round.
    moments = [Moment(event="work", round=2, count=3)]
    return _killed_at(bench, "inside", moments)


def _after(bench: Bench) -> Outcome:
    events = ("half a row", "row", "row written", "saved")
    moments = [
        Moment(event=event, round=number) for number, event in enumerate(events, 1)
    ]
    return _killed_at(bench, "after", moments)


def _saving(bench: Bench) -> Outcome:
    moments = [
        Moment(event="disk", round=1 + number, count=count)
        for number, count in enumerate(STAGES)
    ]
    return _killed_at(bench, "saving", moments)


def _terminated(bench: Bench) -> Outcome:
    ended = bench.run("terminated", at=Moment(event="row", round=2, act="terminate"))
    found = refused(ended, "Interrupted", f"stopped after round 2 of {ROUNDS}")
    bench.goes_on("terminated")
    return Outcome(f"no round lost, {SAME}", found.says)


def _at_the_end(bench: Bench) -> Outcome:
    """A run that has all its rounds, and one that lacks the last."""
    bench.begun("at the end")
    bench.goes_on("at the end")
    bench.goes_on("at the end")
    return Outcome(f"nothing is done twice, {SAME}")


def _control(bench: Bench) -> Outcome:
    """The comparison must see a difference where there is one."""
    ends_well(bench.run("another", problem={"seed": 6}))
    found = difference(bench.folder / "another", bench.whole())
    if not found:
        raise Broke("a run of another seed has the same bytes")
    return Outcome("other bytes", found)


FAULTS = (
    Fault("control: a run of another seed, not disturbed", _control),
    Fault("SIGKILL inside a round, while clients compute", _inside),
    Fault("SIGKILL around each round's row and checkpoint; half a row stays", _after),
    Fault("SIGKILL while a checkpoint is written, at four stages", _saving),
    Fault("SIGTERM in round 2", _terminated),
    Fault("gone on with at the last round, and after it", _at_the_end),
)
