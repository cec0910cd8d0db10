"""Settings as they are read from the command line and from a run's folder."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from fedjax_fm.runs.errors import UsageError
from fedjax_fm.spelling import nearest


def override(config: Any, pairs: Iterable[str]) -> Any:
    """Applies "key=value" settings to a configuration.

    Args:
      config: a frozen dataclass.
      pairs: settings; a value is read as its field's type.

    Returns:
      A changed copy.

    Raises:
      UsageError: an unknown setting, one that is given twice, or a value that is not of
        the field's type or that the configuration refuses.

    Example:
      >>> config = dataclasses.make_dataclass("Config", [("rounds", int)])(8)
      >>> override(config, ["rounds=3"])
      Config(rounds=3)
    """
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
    """Makes the configuration that lies in a run's folder.

    Args:
      kind: the dataclass.
      fields: as read from JSON.
      where: the file, for the message.

    Returns:
      A configuration of that kind.

    Raises:
      UsageError: a setting that is not there, is missing or is of another type.
    """
    hints = typing.get_type_hints(kind)
    for name, value in fields.items():
        if name not in hints:
            raise UsageError(f"{where}: {nearest(name, hints, 'setting')}")
        check_type(name, value, hints[name], where)
    names = [field.name for field in dataclasses.fields(kind)]
    if missing := [name for name in names if name not in fields]:
        raise UsageError(
            f"{where} lacks {', '.join(missing)}: it is of another version, or was changed"
        )
    return replace(kind(), **fields)


def check_type(name: str, value: Any, hint: Any, where: str) -> None:
    """Raises UsageError for a value of a file that is not of a setting's type.

    Args:
      name: of the setting.
      value: as read from JSON or TOML.
      hint: the annotated type.
      where: the file, for the message.
    """
    if not _fits(value, hint):
        raise UsageError(f"{where}: {name}={value!r} is no {_called(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of an annotated type."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,):
        (inner, _) = typing.get_args(hint)
        is_list = isinstance(value, (list, tuple))
        return is_list and all(_fits(one, inner) for one in value)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    return not isinstance(hint, type) or isinstance(value, hint)


def _called(hint: Any) -> str:
    """The type's name in a message."""
    if hint in (int, float):
        return "whole number" if hint is int else "number"
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) is tuple:
        return f"list, each {_called(typing.get_args(hint)[0])}"
    if isinstance(hint, types.UnionType):
        kinds = [part for part in typing.get_args(hint) if part is not type(None)]
        return " or ".join(map(_called, kinds))
    return getattr(hint, "__name__", str(hint))


def replace(config: Any, **changes: Any) -> Any:
    """`dataclasses.replace` whose errors are a UsageError.

    Args:
      config: a frozen dataclass.
      **changes: fields and their new values.

    Returns:
      A changed copy.

    Raises:
      UsageError: an unknown field, or a value that the configuration refuses.
    """
    try:
        return dataclasses.replace(config, **changes)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _read(key: str, text: str, kind: Any) -> Any:
    """The value of a setting, read as an annotated type."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        if text not in inner:
            raise UsageError(nearest(text, inner, f"value of {key}"))
        return text
    if isinstance(kind, types.UnionType):
        if text.lower() == "none":
            return None
        kind = next(part for part in inner if part is not type(None))
        inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",")]
        return tuple(_read(key, part, inner[0]) for part in parts if part)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{key} takes true or false, got {text!r}")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        name = "a number" if kind in (int, float) else kind.__name__
        raise UsageError(f"{key} takes {name}, got {text!r}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key} takes a finite number, got {text!r}")
    return value
