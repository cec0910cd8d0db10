"""Shakespeare's speaking roles, each of which is a client."""

import functools
from typing import NamedTuple

from fedjax_fm import datasets


class Role(NamedTuple):
    """One role, which is of one play."""

    play: str
    speeches: list[str]  # in the order of the play


@functools.cache
def roles() -> dict[str, Role]:
    """All roles by their clients' names, in the order in which they first speak."""
    table, found = datasets.load_shakespeare(), {}
    columns = [table[name] for name in ("client", "play", "speech")]
    for client, play, speech in zip(*columns, strict=True):
        role = found.setdefault(str(client), Role(str(play), []))
        role.speeches.append(str(speech))
    return found


def is_of_tuning(play: str) -> bool:
    """Whether no seed of a study sees this play: every third one, by name.

    Args:
      play: of a `Role`.
    """
    return play in _of_tuning()


@functools.cache
def _of_tuning() -> frozenset[str]:
    plays = sorted({role.play for role in roles().values()})
    return frozenset(plays[::3])
