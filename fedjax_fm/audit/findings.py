"""One line of an audit: a figure, what chance would give, and a verdict."""

from typing import NamedTuple

from fedjax_fm.evaluation.leaks import Interval

LEAKS, NOTHING, SKIPPED = "leaks", "nothing found", "not audited"
HOLDS, FAILS = "holds", "fails"


class Finding(NamedTuple):
    """A line of the table.

    Attributes:
      name: of the attack or the control.
      measure: what the figure is.
      figure: with its interval; None where nothing was computed.
      chance: the figure of an attacker who knows nothing; None where there is none.
      verdict: of the names above.
      note: the rest, in words.
    """

    name: str
    measure: str
    figure: Interval | None
    chance: float | None
    verdict: str
    note: str = ""


def attack(
    name: str, measure: str, figure: Interval, chance: float, note: str = ""
) -> Finding:
    """A line of an attack: it leaks if the whole interval lies above chance.

    Args:
      name: of the attack.
      measure: what the figure is.
      figure: with its interval.
      chance: the figure of an attacker who knows nothing.
      note: in words.

    Example:
      >>> attack("loss", "area", Interval(0.9, 0.8, 0.95), 0.5).verdict
      'leaks'
    """
    return Finding(
        name=name,
        measure=measure,
        figure=figure,
        chance=chance,
        verdict=LEAKS if figure.low > chance else NOTHING,
        note=note,
    )


def control(
    name: str, measure: str, figure: Interval, chance: float, note: str = ""
) -> Finding:
    """A line of a control: it holds if chance lies within the interval.

    Args:
      name: of the control.
      measure: what the figure is.
      figure: with its interval.
      chance: the figure that it must have.
      note: in words.

    Example:
      >>> control("before", "area", Interval(0.9, 0.8, 0.95), 0.5).verdict
      'fails'
    """
    return Finding(
        name=name,
        measure=measure,
        figure=figure,
        chance=chance,
        verdict=HOLDS if figure.low <= chance <= figure.high else FAILS,
        note=note,
    )


def skipped(name: str, why: str) -> Finding:
    """A line of what cannot be audited here.

    Args:
      name: of the attack.
      why: not, and what to do.
    """
    return Finding(
        name=name, measure="", figure=None, chance=None, verdict=SKIPPED, note=why
    )
