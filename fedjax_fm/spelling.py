"""What to say of a name that is not known; nothing that computes is imported."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], what: str) -> str:
    """The message for an unknown name, with the nearest known one.

    Args:
      word: what was given.
      known: the names that there are.
      what: the kind of name, "setting" for example.

    Returns:
      One line.

    Example:
      >>> nearest("fedpn", ["fedpm", "feddf"], "study")
      "unknown study 'fedpn'; did you mean 'fedpm'? There are: feddf, fedpm"
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {what} {word!r}{guess} There are: {', '.join(known)}"
