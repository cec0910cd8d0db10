"""Names that are on their way out; docs/long-life.md says how long they stay.

Python's own `deprecated` marks functions and classes. Every warning names what to use
instead and the release that removes the name, and begins with "fedjax_fm.", by which the
tests make errors of ours alone.
"""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import typing_extensions

Target = TypeVar("Target", bound=Callable[..., Any])


class Moved(NamedTuple):
    """Where a name has gone."""

    use: str  # the new name in full, such as "fedjax_fm.channels.top_k"
    since: str  # the release that deprecates the old one
    until: str  # the release that removes it


def message(name: str, *, use: str, since: str, until: str) -> str:
    """What a warning says.

    Args:
      name: that is deprecated, in full.
      use: what to use instead.
      since: the release that deprecates the name.
      until: the release that removes it.

    Returns:
      One sentence.

    Raises:
      ValueError: the name is not one of fedjax_fm.

    Example:
      >>> message("fedjax_fm.old", use="fedjax_fm.new", since="0.2", until="0.4")
      'fedjax_fm.old is deprecated since 0.2: use fedjax_fm.new; 0.4 removes it'
    """
    if not name.startswith("fedjax_fm."):
        raise ValueError(f"expected a name that begins with fedjax_fm., got {name!r}")
    return f"{name} is deprecated since {since}: use {use}; {until} removes it"


def deprecated(
    name: str, *, use: str, since: str, until: str
) -> Callable[[Target], Target]:
    """Marks a function or a class: a call of it warns.

    Args:
      name: in full, as users write it.
      use: what to use instead.
      since: the release that deprecates it.
      until: the release that removes it.

    Returns:
      A decorator.

    Example:
      >>> @deprecated("fedjax_fm.old", use="fedjax_fm.new", since="0.2", until="0.4")
      ... def old():
      ...     return 1
      >>> with warnings.catch_warnings(record=True) as told:
      ...     warnings.simplefilter("always")
      ...     old(), str(told[0].message)[:30]
      (1, 'fedjax_fm.old is deprecated si')
    """
    text: Any = message(name, use=use, since=since, until=until)
    return typing_extensions.deprecated(text)


def warn(name: str, *, use: str, since: str, until: str, stacklevel: int = 2) -> None:
    """Warns of what no decorator can mark: an argument, a value of one.

    Args:
      name: in full, such as "fedjax_fm.fedavg(steps=)".
      use: what to use instead.
      since: the release that deprecates it.
      until: the release that removes it.
      stacklevel: 2 where a user calls the function that warns.
    """
    text = message(name, use=use, since=since, until=until)
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel + 1)


def moved(module: str, names: Mapping[str, Moved]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that have gone elsewhere.

    Args:
      module: its `__name__`.
      names: {old name: where it has gone}.

    Returns:
      What to bind to `__getattr__`.

    Example:
      >>> gone = {"old": Moved("fedjax_fm.spelling.nearest", since="0.2", until="0.4")}
      >>> find = moved("fedjax_fm.checks", gone)
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("ignore")
      ...     find("old").__name__
      'nearest'
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        where = names[name]
        warn(f"{module}.{name}", **where._asdict(), stacklevel=2)
        home, _, own = where.use.rpartition(".")
        return getattr(importlib.import_module(home), own)

    return find
