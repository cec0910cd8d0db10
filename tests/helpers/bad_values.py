"""A table of factories by bad values: what no hyper-parameter may be, whatever its bounds."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest

BAD = {
    "real": (math.nan, math.inf, -math.inf, True, "0.1", None, [0.1]),
    "real or infinite": (math.nan, -math.inf, True, "0.1", None, [0.1]),
    "whole": (math.nan, math.inf, 1.5, True, "3", None, [3]),
    "flag": (1, 0, "true", None, math.nan),
    "choice": (True, "nonesuch", math.nan, 17.5),
}


class Row(NamedTuple):
    """A factory, arguments with which it works, and what kind each of its hyper-parameters is.

    A kind is a key of BAD; with a "?" behind it, None is a value, too.
    """

    make: Callable[..., Any]
    good: dict[str, Any]
    kinds: dict[str, str]
    name: str = ""


def cases(rows: Iterable[Row]) -> list[Any]:
    """pytest parameters (row, parameter, bad value), one for each."""
    found = []
    for row in rows:
        for parameter, kind in row.kinds.items():
            for value in BAD[kind.rstrip("?")]:
                if value is None and kind.endswith("?"):
                    continue
                found.append(
                    pytest.param(
                        row, parameter, value, id=f"{name_of(row)}-{parameter}-{value}"
                    )
                )
    return found


def name_of(row: Row) -> str:
    return row.name or row.make.__name__


def is_refused(row: Row, parameter: str, value: Any) -> None:
    """Asserts that the good arguments work and that with this one value the error names
    the parameter and the value.
    """
    row.make(**row.good)
    with pytest.raises((TypeError, ValueError)) as raised:
        row.make(**{**row.good, parameter: value})
    assert f"{parameter}={value!r}" in str(
        raised.value
    ) or f"{parameter}={value}" in str(raised.value)


def unlisted(factories: Iterable[Callable[..., Any]], rows: Iterable[Row]) -> list[str]:
    """Parameters annotated as numbers, flags or literals of `factories` that no row of
    the table has.
    """
    listed = {(row.make, parameter) for row in rows for parameter in row.kinds}
    missing = []
    for make in factories:
        for parameter, spec in inspect.signature(make).parameters.items():
            annotation = str(spec.annotation)
            countable = any(
                word in annotation for word in ("int", "float", "bool", "Literal")
            )
            if (
                countable
                and "[" not in annotation.replace("Literal[", "")
                and (make, parameter) not in listed
            ):
                missing.append(f"{make.__name__}({parameter}: {annotation})")
    return missing
