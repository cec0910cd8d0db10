"""Checks of the kernels' arguments that are no arrays; they need nothing but jax."""

import math
import numbers
from typing import Any

import jax.numpy as jnp


def whole(name: str, value: Any, *, least: int, most: int | None = None) -> int:
    """`value`, if it is one whole number from `least` to `most`, known while tracing.

    No bool, float, text or NaN.

    Args:
      name: of the parameter, for the message.
      value: what should be a whole number.
      least: the least value that is allowed.
      most: the largest one; None for no bound.

    Raises:
      TypeError: no whole number, or a traced one.
      ValueError: out of the bounds.

    Example:
      >>> whole("bits", 9, least=1, most=8)
      Traceback (most recent call last):
      ...
      ValueError: expected 1 <= bits <= 8, got bits=9
    """
    bounds = f"{name} >= {least}" if most is None else f"{least} <= {name} <= {most}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"expected a whole number {bounds}, known while tracing, got "
            f"{name}={value!r} of type {type(value).__name__}"
        )
    if not least <= int(value) <= (math.inf if most is None else most):
        raise ValueError(f"expected {bounds}, got {name}={value}")
    return int(value)


def count(name: str, value: Any, *, least: int = 0) -> Any:
    """`value`, if it is a whole number or a scalar integer array, which may be traced.

    Args:
      name: of the parameter, for the message.
      value: what should be a whole number.
      least: the least value that is allowed; not checked for arrays.

    Raises:
      TypeError: neither a whole number nor such an array.
      ValueError: below `least`.
    """
    if hasattr(value, "dtype") and not isinstance(value, numbers.Integral):
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(
                f"expected {name} as one whole number, got "
                f"{name}={value.dtype}{list(value.shape)}"
            )
        return value
    return whole(name, value, least=least)
