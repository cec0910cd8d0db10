"""What becomes of a fault, and what must."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_fm.experiments.reliability.server import Ended

SAME = "same bytes"


class Broke(Exception):
    """Something else happened than what must."""


class Outcome(NamedTuple):
    """What became of a fault.

    Attributes:
      cell: in a few words, for a table.
      says: what the run itself said of it.
    """

    cell: str
    says: str = ""


def ends_well(ended: Ended) -> Ended:
    """The ending, or Broke if it is an error."""
    if ended.code:
        raise Broke(f"ended with {ended.code}: {ended.error}: {ended.message}")
    return ended


def refused(ended: Ended, error: str, *words: str) -> Outcome:
    """The outcome of a session that must end with this error.

    Args:
      ended: how it ended.
      error: the class.
      *words: that its message has.

    Raises:
      Broke: it ended otherwise.
    """
    missing = [word for word in words if word not in ended.message]
    if ended.error != error or missing:
        raise Broke(
            f"expected {error} with {words}, it ended with {ended.code}: "
            f"{ended.error}: {ended.message}"
        )
    return Outcome(f"`{error}`", ended.message)


def killed(ended: Ended) -> None:
    """Raises Broke unless a SIGKILL has ended the session."""
    if ended.code != -9:
        raise Broke(f"was not killed: it ended with {ended.code}: {ended.message}")


class Fault(NamedTuple):
    """A row of the table.

    Attributes:
      name: what is done to a run.
      happens: does it on a `Bench`, and says what became of it; raises Broke.
      only_first: whether it is done to the first method alone, and not in the small
        form.
    """

    name: str
    happens: Callable[[Any], Outcome]
    only_first: bool = False
