"""Checks of the values that people hand to the library.

One sentence that names the value and what was expected.

Each check returns the value as it came, so that it can stand where the value is stored.
A traced value (a hyper-parameter of a sweep) has a dtype and no number: its dtype is
checked, its bounds are not.
"""

import math
import numbers
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer


def real(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> Any:
    """`value`, if it is one real number inside the bounds.

    Args:
      name: what the caller calls it, for the message.
      least, above: bounds from below, `least <= value` and `above < value`.
      most, below: bounds from above, `value <= most` and `value < below`.
      infinite: whether infinity is a number here; NaN never is.

    Raises:
      TypeError: bool, text, None, an array with axes.
      ValueError: NaN, infinity, out of bounds.

    Example:
      >>> real("fraction", 0.5, above=0, most=1)
      0.5
      >>> real("fraction", float("nan"), above=0, most=1)
      Traceback (most recent call last):
      ...
      ValueError: expected 0 < fraction <= 1, got fraction=nan
    """
    expected = _expected(name, "a finite number", least, above, most, below)
    if not _is_number(value, numbers.Real, np.number):
        raise TypeError(f"expected {expected}, got {name}={shown(value)}")
    if isinstance(value, Tracer):
        return value
    number = float(value)
    if not (math.isfinite(number) or (infinite and math.isinf(number))) or not _inside(
        number, least, above, most, below
    ):
        raise ValueError(f"expected {expected}, got {name}={value}")
    return value


def whole(
    name: str, value: Any, *, least: int | None = None, most: int | None = None
) -> Any:
    """`value`, if it is one whole number from `least` to `most`.

    As `real`, and 2.0 is no whole number.

    Example:
      >>> whole("rounds", 3, least=1)
      3
      >>> whole("rounds", True, least=1)
      Traceback (most recent call last):
      ...
      TypeError: expected a whole number rounds >= 1, got rounds=True of type bool
    """
    bounds = _expected(name, name, least, None, most, None)
    expected = f"a whole number {bounds}"
    if not _is_number(value, numbers.Integral, np.integer):
        raise TypeError(f"expected {expected}, got {name}={shown(value)}")
    if not isinstance(value, Tracer) and not _inside(
        int(value), least, None, most, None
    ):
        raise ValueError(f"expected {expected}, got {name}={value}")
    return value


def flag(name: str, value: Any) -> bool:
    """`value`, if it is True or False.

    Not 1, "false" or None, which are true or false by accident.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"expected {name} True or False, got {name}={value!r}")
    return bool(value)


def choice(name: str, value: Any, options: Collection[Any]) -> Any:
    """`value`, if it is one of `options`."""
    if not any(
        value is option or (type(value) is type(option) and value == option)
        for option in options
    ):
        raise ValueError(
            f"expected {name} to be one of {_listed(options)}, got {name}={value!r}"
        )
    return value


def instance(
    name: str, value: Any, kind: type, how: str, *, optional: bool = False
) -> Any:
    """`value`, if it is a `kind`; else a TypeError that says how to make one.

    Args:
      how: what to write instead, for the end of the message.
      optional: whether None is a value, too.
    """
    if isinstance(value, kind) or (optional and value is None):
        return value
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise TypeError(
        f"expected {name} to be {article} {kind.__name__}, got {shown(value)}; {how}"
    )


def server_optimizer(name: str, value: Any) -> Any:
    """`value`, if it is an optax optimizer or None."""
    if value is None or isinstance(value, optax.GradientTransformation):
        return value
    raise TypeError(
        f"expected {name} to be an optax optimizer, got {shown(value)}; {_optimizer_hint(value)}"
    )


def client_optimizer(name: str, value: Any) -> Any:
    """`value`, if it is an optax optimizer, or a function of the round's number that makes one.

    An optimizer's own factory, `optax.sgd` without its brackets, would take the number
    of the round for its rate.
    """
    made = isinstance(value, optax.GradientTransformation)
    makes = callable(value) and not str(getattr(value, "__module__", "")).startswith(
        "optax"
    )
    if made or makes:
        return value
    raise TypeError(
        f"expected {name} to be an optax optimizer or a function of the round "
        f"that makes one, got {shown(value)}; {_optimizer_hint(value)}"
    )


def shown(value: Any, most: int = 80) -> str:
    """A value and its type for a message: '0.5 of type str', or the type alone where
    the value fills lines.
    """
    words = repr(value)
    if len(words) > most or "\n" in words:
        return f"a {type(value).__name__}"
    return f"{words} of type {type(value).__name__}"


def _optimizer_hint(value: Any) -> str:
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        return f"write optax.sgd({value})"
    if callable(value):
        return f"call it: optax.{getattr(value, '__name__', 'sgd')}(learning_rate)"
    return "write for example optax.sgd(0.1)"


def text(name: str, value: Any) -> str:
    """`value`, if it is text that has an encoding; not None, bytes or NaN, whose text nobody wrote.

    Raises:
      TypeError: anything but text.
      ValueError: half of a surrogate pair is in it, which has no UTF-8; says where.

    Example:
      >>> text("text 3", b"abc")
      Traceback (most recent call last):
      ...
      TypeError: text 3: expected text, got b'abc' of type bytes
    """
    if not isinstance(value, str):
        raise TypeError(
            f"{name}: expected text, got {value!r:.60} of type {type(value).__name__}"
        )
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has the lone surrogate {value[error.start]!r} at position "
            f"{error.start}, which has no UTF-8; read the file again with "
            "errors='replace', or mend the text"
        ) from error
    return value


def _is_number(value: Any, kind: type, dtype: type) -> bool:
    """Whether `value` is one number of that kind.

    A Python or NumPy scalar, or an array without axes.
    """
    if isinstance(value, (bool, np.bool_)):
        return False
    if isinstance(value, (jax.Array, np.ndarray)):
        return (
            value.ndim == 0
            and np.issubdtype(value.dtype, dtype)
            and not np.iscomplexobj(value)
        )
    return isinstance(value, kind) or (
        isinstance(value, dtype) and not np.iscomplexobj(value)
    )


def _inside(number: float, least, above, most, below) -> bool:
    high_enough = (least is None or number >= least) and (
        above is None or number > above
    )
    return (
        high_enough
        and (most is None or number <= most)
        and (below is None or number < below)
    )


def _expected(name: str, otherwise: str, least, above, most, below) -> str:
    """The bounds as people write them: '0 < name <= 1', or `otherwise` where there are none."""
    low = (
        f"{least:g} <= "
        if least is not None
        else f"{above:g} < "
        if above is not None
        else ""
    )
    high = (
        f" <= {most:g}"
        if most is not None
        else f" < {below:g}"
        if below is not None
        else ""
    )
    if low and high:
        return f"{low}{name}{high}"
    if low:
        return f"{name} >= {least:g}" if least is not None else f"{name} > {above:g}"
    return (
        f"{name}{high}"
        if high
        else (otherwise if otherwise == name else f"{otherwise} {name}")
    )


def _listed(options: Collection[Any]) -> str:
    return ", ".join(repr(option) for option in options)
