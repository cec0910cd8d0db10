"""Checks of the arguments of channels."""

from fractions import Fraction
from typing import Any

from jax.core import Tracer

from fedjax_fm import checks
from fedjax_fm.types import Channel


def checked_channel(where: str, value: Any) -> Channel:
    """`value`, if it is a channel.

    Args:
      where: the function, and the parameter if its name says more, for the message.
      value: what should be a channel.

    Raises:
      TypeError: anything else, such as the name of a channel, or `top_k` instead of
        `top_k(0.01)`.

    Example:
      >>> checked_channel("error_feedback", "top_k")
      Traceback (most recent call last):
        ...
      TypeError: error_feedback: expected a channel, such as ... got 'top_k' of type str
    """
    if isinstance(value, Channel):
        return value
    what = repr(value)
    if callable(value) and hasattr(value, "__name__"):
        what = f"the function {value.__name__} (call it with its arguments)"
    raise TypeError(
        f"{where}: expected a channel, such as channels.top_k(0.01), got {what} "
        f"of type {type(value).__name__}"
    )


def checked_real(name: str, value: Any, **bounds: Any) -> Any:
    """`checks.real` of a number that configures both ends of the wire.

    A Python number: 0.1 in f32 becomes the decimal 0.1, not the f32 number next to it.

    Args:
      name: of the parameter, for the message.
      value: what should be a finite number.
      **bounds: those of `checks.real`.
    """
    checks.real(name, value, **bounds)
    _is_known(name, value)
    if isinstance(value, int | float | Fraction):
        return value
    return float(str(value))


def checked_whole(name: str, value: Any, *, least: int, most: int | None = None) -> int:
    """`checks.whole` of a number that configures both ends of the wire, as an int.

    Args:
      name: of the parameter, for the message.
      value: what should be a whole number.
      least: the least value that is allowed.
      most: the largest one; None for no bound.
    """
    checks.whole(name, value, least=least, most=most)
    _is_known(name, value)
    return int(value)


def checked_block(size: int | None, name: str = "block_size") -> int | None:
    """`size`, if it can be the number of entries that share a scale.

    Args:
      size: at least 1, or None for the whole message.
      name: of the parameter, for the message.
    """
    if size is None:
        return None
    try:
        return checked_whole(name, size, least=1)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}; or None for the whole message") from None


def checked_fraction(fraction: float) -> float:
    """`fraction`, if it is a share of the entries: above 0 and at most 1.

    Args:
      fraction: what should be such a share.
    """
    return checked_real("fraction", fraction, above=0, most=1)


def _is_known(name: str, value: Any) -> None:
    """Refuses a number that is traced."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"expected {name} as a number that is known before the round is "
            "traced, as both ends of the wire are configured with it, got "
            f"{name}={value}; sweep over it in a loop of simulators"
        )
