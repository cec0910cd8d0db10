"""How settings are read from the command line and from a folder, and what is said of a
wrong one.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from fedjax_fm.runs.errors import UsageError


def nearest(word: str, known: Iterable[str], what: str) -> str:
    """'unknown WHAT 'word'; did you mean 'x'? There are: …'"""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {what} {word!r}{guess} There are: {', '.join(known)}"


def override(config: Any, pairs: Iterable[str]) -> Any:
    """`config` with "key=value" settings applied, values read as the field's type."""
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        key = key.strip()
        if not sign:
            raise UsageError(f"--set takes key=value, got {pair!r}")
        if key not in hints:
            raise UsageError(nearest(key, hints, "setting"))
        if key in changes:
            raise UsageError(f"--set gives {key} twice")
        changes[key] = _read(key, text.strip(), hints[key])
    return replace(config, **changes)


def restored(kind: type, fields: Mapping[str, Any], where: str) -> Any:
    """The configuration that lies in a run's folder.

    Args:
      fields: as read from JSON.
      where: the file, for the message.

    Raises:
      UsageError: a setting that is not there, is missing or is of another type.
    """
    hints = typing.get_type_hints(kind)
    for name, value in fields.items():
        if name not in hints:
            raise UsageError(f"{where}: {nearest(name, hints, 'setting')}")
        if not _fits(value, hints[name]):
            raise UsageError(f"{where}: {name}={value!r} is no {_called(hints[name])}")
    if missing := [
        field.name for field in dataclasses.fields(kind) if field.name not in fields
    ]:
        raise UsageError(
            f"{where} lacks {', '.join(missing)}: it is of another version, or was changed"
        )
    return replace(kind(), **fields)


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return (
        value is None
        if hint is type(None)
        else not isinstance(hint, type) or isinstance(value, hint)
    )


def _called(hint: Any) -> str:
    return {int: "whole number", float: "number"}.get(hint) or getattr(
        hint, "__name__", str(hint)
    )


def replace(config: Any, **changes: Any) -> Any:
    """`dataclasses.replace` with the configuration's own complaint as a UsageError."""
    try:
        return dataclasses.replace(config, **changes)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _read(key: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            raise UsageError(nearest(text, typing.get_args(kind), f"value of {key}"))
        return text
    if isinstance(kind, types.UnionType):
        if text.lower() == "none":
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(
            _read(key, part.strip(), inner) for part in text.split(",") if part.strip()
        )
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{key} takes true or false, got {text!r}")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        raise UsageError(
            f"{key} takes {'a number' if kind in (int, float) else kind.__name__}, got {text!r}"
        ) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key} takes a finite number, got {text!r}")
    return value
