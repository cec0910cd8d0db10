"""Names of modules: regular expressions, endings of paths, or functions."""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

Targets = str | Sequence[str] | Callable[[str], bool]


class AnyOf(tuple):
    """Names that several families of models use; a model must have at least one.

    Of other lists, a model must have every entry.
    """


# Classification heads, as Hugging Face names them.
HEADS = AnyOf(
    ("classifier", "pre_classifier", "score", "classification_head", "projector")
)


def matches(path: str, targets: Targets) -> bool:
    """Whether `targets` name a module.

    Args:
      path: dotted, of the module.
      targets: a regular expression that is searched in the path, a list of endings of
        paths, or a function of the path.

    Returns:
      True if the expression is found, or the path ends in an entry of the list.

    Example:
      >>> matches("encoder.layer.query", ["query"])
      True
      >>> matches("encoder.layer.query", "key|value")
      False
    """
    if callable(targets):
        return targets(path)
    if isinstance(targets, str):
        return re.search(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)


def entries(targets: Targets) -> list[Targets]:
    """Splits `targets` into the parts of which each must match something.

    Args:
      targets: see `matches`.

    Returns:
      The entries of a list, or the alternatives of an expression; one entry for a
      function and for an `AnyOf`.

    Example:
      >>> entries("query|(key|value)$")
      ['query', '(key|value)$']
      >>> entries(["query", "value"])
      [['query'], ['value']]
    """
    if callable(targets):
        return [targets]
    if isinstance(targets, str):
        return list(_alternatives(targets))
    if isinstance(targets, AnyOf):
        return [targets]
    return [[target] for target in targets]


def _alternatives(expression: str) -> list[str]:
    """The alternatives of a regular expression at its top level."""
    found, depth, in_class, start, position = [], 0, False, 0, 0
    while position < len(expression):
        letter = expression[position]
        if letter == "\\":
            position += 1
        elif in_class:
            in_class = letter != "]"
        elif letter == "[":
            in_class = True
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "|" and depth == 0:
            found.append(expression[start:position])
            start = position + 1
        position += 1
    return [*found, expression[start:]]


def check_targets(name: str, targets: Any) -> Any:
    """Returns `targets` if they can name modules.

    Args:
      name: of the parameter, for messages.
      targets: an expression, a list of names, or a function.

    Returns:
      `targets`; a set as a sorted list.

    Raises:
      TypeError: something else.
      ValueError: a regular expression that does not compile.
    """
    if callable(targets):
        return targets
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(
                f"expected {name} a regular expression, got {name}={targets!r}: {error}"
            ) from error
        return targets
    if isinstance(targets, bytes):
        listed = False
    else:
        listed = isinstance(targets, Sequence | set | frozenset)
    if not listed or not all(isinstance(target, str) for target in targets):
        raise TypeError(
            f"expected {name} a regular expression, a list of path endings or a "
            f"function of a path, got {name}={targets!r}"
        )
    return sorted(targets) if isinstance(targets, set | frozenset) else targets


def check_names(name: str, names: Any) -> Any:
    """Returns `names` if they are a list; a single text would be read letter by letter.

    Args:
      name: of the parameter, for messages.
      names: a list of names.

    Returns:
      `names`; a set as a sorted list.

    Raises:
      TypeError: a text, a function, or a list of something else.
    """
    if isinstance(names, str) or callable(names):
        raise TypeError(
            f"expected {name} a list of module names, got {name}={names!r}; write "
            f"{name}=[{names!r}]"
        )
    return check_targets(name, names)


def refuse_unmatched(
    name: str,
    unmatched: Sequence[Targets],
    kind: str,
    there: Sequence[str],
    hint: str = "",
) -> None:
    """Raises for entries that match nothing; suggests the nearest name.

    Args:
      name: of the parameter, for the message.
      unmatched: the entries; none raises nothing.
      kind: of what they should name.
      there: plain paths of all that could be named.
      hint: a sentence that goes before the list of these.

    Raises:
      ValueError: there are such entries.
    """
    if not unmatched:
        return
    names = [target for target in unmatched if not callable(target)]
    words = [word for target in names for word in words_of(target)]
    last = sorted({path.rsplit(".", 1)[-1] for path in there})
    near = []
    for word in words:
        near += difflib.get_close_matches(word, last, n=1)
    flat = words if all(isinstance(target, list) for target in unmatched) else unmatched
    listed = len(flat) > 1 or isinstance(unmatched[0], list)
    shown = list(flat) if listed else unmatched[0]
    suggested = ", ".join(repr(word) for word in near)
    question = f"; did you mean {suggested}?" if near else ""
    raise ValueError(
        f"{name}={shown!r} match no {kind}{question}{hint} "
        f"There are: {', '.join(there) or 'none'}"
    )


def words_of(targets: Any) -> list[str]:
    """Lists the texts that an entry of targets is made of.

    Args:
      targets: an expression, or a list.

    Returns:
      One text for an expression, the entries of a list.
    """
    return [targets] if isinstance(targets, str) else list(targets)
