"""Both orders of every pair, and what they say together."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.judges.judge import (
    SWAPPED,
    Decision,
    Judge,
    Pair,
    Verdict,
    checked_pairs,
    swapped,
)


class Judged(NamedTuple):
    """What a judge said of pairs, each of which it saw in both orders.

    Attributes:
      judge: its name.
      outcomes: of n pairs: "a" and "b" where both orders agree, else "tie"; "error" and
        "waiting" where one of the orders gave that.
      lengths: f64[n, 2], of the answers a and b.
      unit: of the lengths, such as "words".
      first: share of the pairs with two verdicts in which whatever was shown first won
        twice; 0 for a judge that does not look at the order.
      reasons: of errors and waits, {number of the pair: words}.
    """

    judge: str
    outcomes: tuple[Verdict, ...]
    lengths: np.ndarray
    unit: str
    first: float
    reasons: dict[int, str]


def n_words(text: str) -> int:
    """Words of a text, by white space.

    Args:
      text: any.

    Example:
      >>> n_words("two words")
      2
    """
    return len(text.split())


def compare(
    judge: Judge,
    pairs: Sequence[Pair],
    *,
    folder: str | os.PathLike[str] | None = None,
    length: Callable[[str], int] = n_words,
    unit: str = "words",
) -> Judged:
    """Asks a judge about pairs, each in both orders.

    An answer wins where both orders say so; a judge that always prefers what it sees
    first finds ties alone.

    Args:
      judge: such as `rouge_judge()`.
      pairs: at least one.
      folder: of the run; pairs and outcomes are written there, and pairs that the judge
        could not be asked about are kept for `compare_waiting`. The texts are in the
        file. None: nothing is written.
      length: of an answer, for the length beside the win rate.
      unit: of that length, in words.

    Returns:
      `Judged`; an unreachable judge leaves "waiting" and raises nothing.

    Raises:
      TypeError, ValueError: no judge, no pairs, or something else than text in them; a
        folder that has this judge's outcomes of other pairs.

    References:
      Zheng et al. 2023, arXiv 2306.05685, section 3.4 (both orders).

    Example:
      >>> from fedjax_fm.evaluation import judges
      >>> pair = Pair(prompt="2 + 2?", a="4", b="5", reference="4")
      >>> found = compare(judges.exact_judge(), [pair, swapped(pair)])
      >>> found.outcomes
      ('a', 'b')
    """
    checks.instance("judge", judge, Judge, "write for example judges.rouge_judge()")
    pairs = checked_pairs(pairs)
    if not callable(length):
        raise TypeError(f"expected length as a function, got {checks.shown(length)}")
    checks.text("unit", unit)
    decisions = _both_orders(judge, pairs)
    found = _judged(judge.name, pairs, decisions, length, unit)
    if folder is not None:
        _write(_file(folder, judge.name), pairs, decisions)
    return found


def compare_waiting(
    judge: Judge,
    folder: str | os.PathLike[str],
    *,
    length: Callable[[str], int] = n_words,
    unit: str = "words",
) -> Judged:
    """Asks again about the pairs of a run folder that wait for this judge.

    Args:
      judge: of the name that `compare` wrote; another judge's pairs are in a file of
        their own.
      folder: of the run.
      length: as of `compare`.
      unit: as of `compare`.

    Returns:
      `Judged` of all pairs of the file, those of before among them.

    Raises:
      FileNotFoundError: no pairs of this judge are there.
    """
    checks.instance("judge", judge, Judge, "write for example judges.rouge_judge()")
    path = _file(folder, judge.name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: compare(judge, pairs, folder=...) writes it for the "
            f"judge {judge.name!r}"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pairs = [Pair(**row["pair"]) for row in rows]
    decisions = [[Decision(*one) for one in row["decisions"]] for row in rows]
    waits = [
        i for i, both in enumerate(decisions) if _joined(both).verdict == "waiting"
    ]
    if waits:
        again = _both_orders(judge, [pairs[i] for i in waits])
        for place, both in zip(waits, again, strict=True):
            decisions[place] = both
        path.unlink()
        _write(path, pairs, decisions)
    return _judged(judge.name, pairs, decisions, length, unit)


def _both_orders(judge: Judge, pairs: list[Pair]) -> list[list[Decision]]:
    """[decision, decision of the swapped pair, as it was shown] of each pair."""
    orders = []
    for shown in (pairs, [swapped(pair) for pair in pairs]):
        found = list(judge.decide(shown))
        if len(found) != len(pairs):
            raise ValueError(
                f"the judge {judge.name!r} gave {len(found)} decisions for {len(pairs)} "
                "pairs"
            )
        orders.append(found)
    return [list(both) for both in zip(*orders, strict=True)]


def _joined(both: Sequence[Decision]) -> Decision:
    """What both orders say together."""
    for verdict in ("waiting", "error"):
        for one in both:
            if one.verdict == verdict:
                return one
    first, second = both[0].verdict, both[1].verdict
    agree = first == SWAPPED.get(second, second)
    return Decision(first if agree else "tie")


def _judged(
    name: str,
    pairs: list[Pair],
    decisions: list[list[Decision]],
    length: Callable[[str], int],
    unit: str,
) -> Judged:
    """The outcomes of all pairs."""
    joined = [_joined(both) for both in decisions]
    decided = [
        both
        for both, one in zip(decisions, joined, strict=True)
        if one.verdict not in ("error", "waiting")
    ]
    firsts = [both[0].verdict == "a" == both[1].verdict for both in decided]
    return Judged(
        judge=name,
        outcomes=tuple(one.verdict for one in joined),
        lengths=np.array([[length(p.a), length(p.b)] for p in pairs], np.float64),
        unit=unit,
        first=float(np.mean(firsts)) if firsts else 0.0,
        reasons={i: one.why for i, one in enumerate(joined) if one.why},
    )


def _file(folder: str | os.PathLike[str], name: str) -> Path:
    """Where the outcomes of a judge are."""
    plain = "".join(c if c.isalnum() else "-" for c in name)
    return Path(folder) / "judged" / f"{plain}.jsonl"


def _write(path: Path, pairs: list[Pair], decisions: list[list[Decision]]) -> None:
    """A line a pair; the file appears whole or not at all."""
    if path.exists():
        raise ValueError(
            f"{path} has outcomes of this judge already: compare_waiting(judge, folder) "
            "goes on with them; give another folder for other pairs"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {"pair": pair._asdict(), "decisions": [list(one) for one in both]}
        for pair, both in zip(pairs, decisions, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    scratch = path.with_suffix(".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
