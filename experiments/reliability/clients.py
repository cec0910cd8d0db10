"""Clients that go wrong, cohorts of nobody, and functions of the user's that raise."""

import json
from typing import Any

from fedjax_fm.experiments.reliability.bench import ROUNDS, Bench
from fedjax_fm.experiments.reliability.fuse import Moment
from fedjax_fm.experiments.reliability.methods import DP
from fedjax_fm.experiments.reliability.outcome import (
    SAME,
    Broke,
    Fault,
    Outcome,
    ends_well,
    refused,
)

NAN_CLIENT = 2
UNTIL_DRAWN = 20  # rounds in which that client takes part


def _rows(bench: Bench, name: str) -> list[dict[str, Any]]:
    text = (bench.folder / name / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _nan(bench: Bench) -> Outcome:
    """The run stops before the round in which that client takes part, and says who it is."""
    problem = {"nan_client": NAN_CLIENT}
    ended = bench.run("nan", UNTIL_DRAWN, problem=problem)
    found = refused(ended, "NonFiniteClient", f"client {NAN_CLIENT} produced NaN")
    again = bench.run("nan", UNTIL_DRAWN, problem=problem)
    if again.message != ended.message:
        raise Broke(f"gone on with, it says {again.message}")
    done = len(_rows(bench, "nan"))
    if f"round {done}:" not in ended.message:
        raise Broke(f"{done} rounds are saved, and it says {ended.message}")
    return Outcome(f"{found.cell}, the rounds before are saved", found.says)


def _empty(bench: Bench) -> Outcome:
    """Two clients without examples count nothing, whether they are drawn or not."""
    ends_well(bench.run("empty", problem={"empty": 2}))
    rows = _rows(bench, "empty")
    if len(rows) != ROUNDS or any(row["loss"] is None for row in rows):
        raise Broke(f"a loss is not there: {rows}")
    losses = ", ".join(f"{row['loss']:.3f}" for row in rows)
    return Outcome("weight 0, every loss finite", f"losses {losses}")


def _nobody(bench: Bench) -> Outcome:
    """No upload of round 2 arrives: the model stays, but for noise under DP."""
    ends_well(bench.run("nobody", problem={"nobody_in": 1}))
    rows = _rows(bench, "nobody")
    if len(rows) != ROUNDS or rows[1]["clients"] or rows[1]["loss"] is not None:
        raise Broke(f"round 2 is {rows[1]}")
    moved = rows[1]["delta_b"] != rows[0]["delta_b"]
    if moved != (bench.method == DP):
        raise Broke(f"the model {'has moved' if moved else 'has no noise'}")
    what = "noise is added" if moved else "the model stays"
    return Outcome(f"round counted, {what}", f"round 2: {json.dumps(rows[1])}")


def _raises_when_traced(bench: Bench) -> Outcome:
    ended = bench.run("traced", problem={"raises": True})
    words = ("a column that is not there", "in the loss, which was given")
    return refused(ended, "KeyError", *words)


def _raises_at_work(bench: Bench) -> Outcome:
    """On one device, where no other one waits for it."""
    moment = Moment(event="work", round=2, count=3, act="fail")
    ended = bench.run("raises", at=moment, devices=1)
    words = ("a column that is not there", "fedjax_fm: in ")
    found = refused(ended, ended.error, *words)
    lines = ended.message.splitlines()
    # Between them is the traceback, with the paths of this machine.
    told = [
        line for line in lines if line.startswith(("INTERNAL", "KeyError", "fedjax"))
    ]
    return Outcome(found.cell, " … ".join(told))


def _raises_beside_another(bench: Bench) -> Outcome:
    """On two devices the other one waits, until XLA ends the process."""
    moment = Moment(event="work", round=2, count=3, act="fail")
    ended = bench.run("raises on two", at=moment)
    log = bench.server().log.read_text(encoding="utf-8", errors="replace")
    if not ended.code or "a column that is not there" not in log:
        raise Broke(f"ended with {ended.code}, and the log lacks the traceback")
    if ended.code > 0:
        return Outcome(f"`{ended.error}`", ended.message)
    text = "the traceback is on stderr at once; XLA ends the process after 60 s"
    return Outcome(f"exit code {ended.code}", text)


def _callback_raises(bench: Bench) -> Outcome:
    ended = bench.run("callback", at=Moment(event="look", round=2, act="fail"))
    found = refused(ended, "CallbackError", "the callback norm failed after round 2")
    bench.goes_on("callback")
    return Outcome(f"{found.cell}, then {SAME}", found.says)


def _impossible_partition(bench: Bench) -> Outcome:
    ended = bench.run("partition", problem={"partition": 100})
    return refused(ended, "ValueError", "100")


FAULTS = (
    Fault("NaN in one client's data", _nan),
    Fault("clients without examples", _empty),
    Fault("a round of which no upload arrives", _nobody),
    Fault("the user's loss raises when it is traced", _raises_when_traced),
    Fault("the user's loss raises inside a round, on one device", _raises_at_work),
    Fault("the same on two devices", _raises_beside_another, True),
    Fault("the user's callback raises", _callback_raises),
    Fault("a partition into more parts than rows", _impossible_partition, True),
)
