"""Names of modules as people write them.

Expressions, endings of paths, functions; no model is needed here.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

Targets = str | Sequence[str] | Callable[[str], bool]


class AnyOf(tuple):
    """Names of several families of models, of which a model has some.

    Of other lists every entry must be found.
    """


# Classification heads, as Hugging Face names them.
HEADS = AnyOf(("classifier", "pre_classifier", "score", "classification_head"))


def matches(path: str, targets: Targets) -> bool:
    """A string is a regular expression, searched in the path.

    A list holds path endings; a function decides itself.
    """
    if callable(targets):
        return targets(path)
    if isinstance(targets, str):
        return re.search(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)


def entries(targets: Targets) -> list[Targets]:
    """What of `targets` must be found, each for itself.

    The entries of a list, the alternatives of an expression.

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
    """`targets`, if they are an expression, names or a function.

    Raises:
      TypeError: something else.
      ValueError: an expression that is none, or no name at all.
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
    listed = isinstance(targets, Sequence | set | frozenset) and not isinstance(
        targets, bytes
    )
    if not listed or not all(isinstance(target, str) for target in targets):
        raise TypeError(
            f"expected {name} a regular expression, a list of path endings or a "
            f"function of a path, got {name}={targets!r}"
        )
    return sorted(targets) if isinstance(targets, set | frozenset) else targets


def check_names(name: str, names: Any) -> Any:
    """`names`, if they are a list of names and not one text, whose letters would be
    taken for names.
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
    """Raises for entries of `targets` that match nothing, with what is near and what there is."""
    if not unmatched:
        return
    words = [
        word
        for target in unmatched
        if not callable(target)
        for word in words_of(target)
    ]
    last = sorted({path.rsplit(".", 1)[-1] for path in there})
    near = [
        match for word in words for match in difflib.get_close_matches(word, last, n=1)
    ]
    flat = words if all(isinstance(target, list) for target in unmatched) else unmatched
    shown = (
        repr(list(flat))
        if len(flat) > 1 or isinstance(unmatched[0], list)
        else repr(unmatched[0])
    )
    raise ValueError(
        f"{name}={shown} match no {kind}"
        + (f"; did you mean {', '.join(map(repr, near))}?" if near else "")
        + f"{hint} There are: {', '.join(there) or 'none'}"
    )


def words_of(targets: Any) -> list[str]:
    """The texts that `targets` are made of."""
    return [targets] if isinstance(targets, str) else list(targets)
