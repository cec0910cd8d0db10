"""Checks of the values that people hand to the library.

An error is one sentence that names the value and what was expected. Each check returns
the value as it came, so that it can stand where the value is stored. A traced value (a
hyper-parameter of a sweep) has a dtype and no number: its dtype is checked, its bounds
are not.
"""

import math
import numbers
from collections.abc import Collection
from typing import Any, NamedTuple

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
      value: what should be a number.
      least: bound from below, `least <= value`; None for none, as for all bounds.
      above: bound from below, `above < value`.
      most: bound from above, `value <= most`.
      below: bound from above, `value < below`.
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
    bounds = _Bounds(least=least, above=above, most=most, below=below)
    expected = bounds.around(name)
    if expected == name:
        expected = f"a finite number {name}"
    if not _is_number(value, numbers.Real, np.number):
        raise TypeError(f"expected {expected}, got {name}={shown(value)}")
    if isinstance(value, Tracer):
        return value
    number = float(value)
    is_number = not math.isnan(number) if infinite else math.isfinite(number)
    if not is_number or not bounds.hold(number):
        raise ValueError(f"expected {expected}, got {name}={value}")
    return value


def whole(
    name: str, value: Any, *, least: int | None = None, most: int | None = None
) -> Any:
    """`value`, if it is one whole number from `least` to `most`.

    As `real`, and 2.0 is no whole number.

    Args:
      name: what the caller calls it, for the message.
      value: what should be a number.
      least: the least that is allowed; None for no bound.
      most: the largest that is allowed; None for no bound.

    Raises:
      TypeError: no whole number.
      ValueError: out of bounds.

    Example:
      >>> whole("rounds", 3, least=1)
      3
      >>> whole("rounds", True, least=1)
      Traceback (most recent call last):
      ...
      TypeError: expected a whole number rounds >= 1, got rounds=True of type bool
    """
    bounds = _Bounds(least=least, most=most)
    expected = f"a whole number {bounds.around(name)}"
    if not _is_number(value, numbers.Integral, np.integer):
        raise TypeError(f"expected {expected}, got {name}={shown(value)}")
    if isinstance(value, Tracer):
        return value
    if not bounds.hold(int(value)):
        raise ValueError(f"expected {expected}, got {name}={value}")
    return value


def flag(name: str, value: Any) -> bool:
    """`value`, if it is True or False.

    Not 1, "false" or None, which are true or false by accident.

    Args:
      name: what the caller calls it, for the message.
      value: what should be a bool.

    Raises:
      TypeError: anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"expected {name} True or False, got {name}={value!r}")
    return bool(value)


def choice(name: str, value: Any, options: Collection[Any]) -> Any:
    """`value`, if it is one of `options`.

    Args:
      name: what the caller calls it, for the message.
      value: what should be one of them.
      options: what is allowed.

    Raises:
      ValueError: anything else.
    """
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
      name: what the caller calls it, for the message.
      value: what should be a `kind`.
      kind: the class.
      how: what to write instead, for the end of the message.
      optional: whether None is a value, too.

    Raises:
      TypeError: anything else.
    """
    if isinstance(value, kind) or (optional and value is None):
        return value
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise TypeError(
        f"expected {name} to be {article} {kind.__name__}, got {shown(value)}; {how}"
    )


def server_optimizer(name: str, value: Any) -> Any:
    """`value`, if it is an optax optimizer or None.

    Args:
      name: what the caller calls it, for the message.
      value: what should be an optimizer.

    Raises:
      TypeError: anything else.
    """
    if value is None or isinstance(value, optax.GradientTransformation):
        return value
    raise TypeError(
        f"expected {name} to be an optax optimizer, got {shown(value)}; "
        f"{_optimizer_hint(value)}"
    )


def client_optimizer(name: str, value: Any) -> Any:
    """`value`, if it is an optax optimizer, or a function of the round that makes one.

    An optimizer's own factory, `optax.sgd` without its brackets, would take the number
    of the round for its rate.

    Args:
      name: what the caller calls it, for the message.
      value: what should be an optimizer, or `round -> optimizer`.

    Raises:
      TypeError: anything else, optax's factories too.
    """
    made = isinstance(value, optax.GradientTransformation)
    module = str(getattr(value, "__module__", ""))
    makes = callable(value) and not module.startswith("optax")
    if made or makes:
        return value
    raise TypeError(
        f"expected {name} to be an optax optimizer or a function of the round "
        f"that makes one, got {shown(value)}; {_optimizer_hint(value)}"
    )


def shown(value: Any, most: int = 80) -> str:
    """A value and its type for a message: '0.5 of type str'.

    The type alone where the value fills lines.

    Args:
      value: any.
      most: characters of a value that is shown.
    """
    words = repr(value)
    if len(words) > most or "\n" in words:
        return f"a {type(value).__name__}"
    return f"{words} of type {type(value).__name__}"


def _optimizer_hint(value: Any) -> str:
    """What to write instead of a value that is no optimizer."""
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        return f"write optax.sgd({value})"
    if callable(value):
        return f"call it: optax.{getattr(value, '__name__', 'sgd')}(learning_rate)"
    return "write for example optax.sgd(0.1)"


def text(name: str, value: Any) -> str:
    """`value`, if it is text that has an encoding.

    Not None, bytes or NaN, whose text would be made up.

    Args:
      name: what the caller calls it, for the message.
      value: what should be text.

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


class _Bounds(NamedTuple):
    """Bounds of a number; None for none."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, number: float) -> bool:
        """Whether a number is inside."""
        if self.least is not None and not number >= self.least:
            return False
        if self.above is not None and not number > self.above:
            return False
        if self.most is not None and not number <= self.most:
            return False
        return self.below is None or number < self.below

    def around(self, name: str) -> str:
        """The bounds in words: '0 < name <= 1'; the name alone if there are none."""
        low = high = alone = ""
        if self.least is not None:
            low, alone = f"{self.least:g} <= ", f">= {self.least:g}"
        elif self.above is not None:
            low, alone = f"{self.above:g} < ", f"> {self.above:g}"
        if self.most is not None:
            high = f" <= {self.most:g}"
        elif self.below is not None:
            high = f" < {self.below:g}"
        if low and not high:
            return f"{name} {alone}"
        return f"{low}{name}{high}"


def _listed(options: Collection[Any]) -> str:
    """Options in a row."""
    return ", ".join(repr(option) for option in options)
