"""The one interface of all judges: which of two answers is the better one."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from fedjax_fm import checks

# "error": the judge answered, and not with one of the three. "waiting": it could not be
# asked, and is to be asked later.
Verdict = Literal["a", "b", "tie", "error", "waiting"]
VERDICTS = ("a", "b", "tie", "error", "waiting")
SWAPPED: dict[Verdict, Verdict] = {"a": "b", "b": "a"}


class Pair(NamedTuple):
    """Two answers to one prompt.

    Attributes:
      prompt: what was asked.
      a: the answer of the model that is judged.
      b: the answer that it is compared with.
      reference: a right answer, for judges that compare with one.
    """

    prompt: str
    a: str
    b: str
    reference: str = ""


class Decision(NamedTuple):
    """What a judge said of one pair, in the order in which it was shown.

    Attributes:
      verdict: "a", "b", "tie", "error" or "waiting".
      why: of an error or a wait, in words.
    """

    verdict: Verdict
    why: str = ""


class Judge(NamedTuple):
    """Someone who compares answers.

    Attributes:
      name: what it is, such as "ROUGE-L to the reference". It stands beside every
        number, so it names what really judges.
      decide: `pairs -> a decision for each`, in the order in which they are shown.
    """

    name: str
    decide: Callable[[Sequence[Pair]], Sequence[Decision]]


def swapped(pair: Pair) -> Pair:
    """The pair with its answers in the other order.

    Args:
      pair: two answers.

    Returns:
      A pair.

    Example:
      >>> swapped(Pair(prompt="2 + 2?", a="4", b="5")).a
      '5'
    """
    return pair._replace(a=pair.b, b=pair.a)


def checked_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs as a list, each of them looked at.

    Args:
      pairs: at least one.

    Raises:
      TypeError: one is no `Pair`, or holds something else than text.
      ValueError: there is none.
    """
    found = list(pairs)
    if not found:
        raise ValueError("expected at least one pair to judge, got none")
    for number, pair in enumerate(found):
        checks.instance(f"pair {number}", pair, Pair, "write judges.Pair(prompt, a, b)")
        for name, value in pair._asdict().items():
            checks.text(f"{name} of pair {number}", value)
    return found


def by_scores(first: float, second: float) -> Decision:
    """The answer with the higher score; equal scores are a tie.

    Args:
      first: score of a.
      second: score of b.

    Returns:
      A decision; an error where a score is not a number.

    Example:
      >>> by_scores(0.3, 0.2).verdict, by_scores(0.2, 0.2).verdict
      ('a', 'tie')
    """
    if first != first or second != second:
        return Decision("error", "a score is NaN")
    if first == second:
        return Decision("tie")
    return Decision("a" if first > second else "b")
