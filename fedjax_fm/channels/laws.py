"""What a receiver may rely on of a lossy channel, as numbers that a method can read."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Unbiased(NamedTuple):
    """The law of a channel whose mistakes cancel in the mean.

        E C(x) = x,  E ||C(x) - x||^2 <= omega ||x||^2

    Attributes:
      omega: `n -> omega` for messages of n floats, a bound that holds for all of them.

    Example:
      >>> from fedjax_fm import channels
      >>> channels.random_k(0.25).law.omega(1000)
      3.0
    """

    omega: Callable[[int], float]


class Contractive(NamedTuple):
    """The law of a channel whose error is less than the message; in general biased.

        E ||C(x) - x||^2 <= (1 - delta) ||x||^2,  0 < delta <= 1

    Attributes:
      delta: `n -> delta` for messages of n floats, a bound that holds for all of them.
      selects: whether entries arrive exactly or as zero.

    Example:
      >>> from fedjax_fm import channels
      >>> channels.top_k(0.25).law.delta(1000)
      0.25
    """

    delta: Callable[[int], float]
    selects: bool = False


def constant(value: float) -> Callable[[int], float]:
    """A bound that is the same for messages of every length.

    Args:
      value: the bound.
    """
    return lambda n: float(value)


def of_blocks(
    bound: Callable[[int], float], width: int | None
) -> Callable[[int], float]:
    """A bound that depends on the entries which share a scale.

    Args:
      bound: `entries of a block -> bound`.
      width: of a block; None for the whole message.
    """
    return lambda n: float(bound(min(width or n, n)))


def delta_of(law: Any, n: int) -> float:
    """The contraction of a law: delta, or 1 - omega of an unbiased channel.

    Args:
      law: of a channel.
      n: floats of a message.

    Returns:
      A bound; 0 or less where nothing contracts, or nothing is promised.
    """
    if isinstance(law, Unbiased):
        return 1 - law.omega(n)
    return law.delta(n) if isinstance(law, Contractive) else 0.0


def in_a_row(first: Any, second: Any) -> Any:
    """The law of two channels, the second encoding what the first would send.

    Args:
      first: law of the first.
      second: law of the second; its messages are at most as long as those of the first.

    Returns:
      1 + omega = (1 + omega_1)(1 + omega_2) where both are unbiased; delta = delta_1
      delta_2 where the first selects entries, as the error of the second then falls on
      what is kept; None of anything else.
    """
    if isinstance(first, Unbiased) and isinstance(second, Unbiased):
        return Unbiased(lambda n: (1 + first.omega(n)) * (1 + second.omega(n)) - 1)
    selects = isinstance(first, Contractive) and first.selects
    if selects and isinstance(second, Unbiased | Contractive):
        return Contractive(lambda n: delta_of(first, n) * delta_of(second, n))
    return None


def side_by_side(laws: list[Any]) -> Any:
    """The law of channels that carry parts of one message, the worst of them.

    Args:
      laws: of the parts.

    Returns:
      Unbiased if all are; contractive if all contract; else None.
    """
    if all(isinstance(law, Unbiased) for law in laws):
        return Unbiased(lambda n: max(law.omega(n) for law in laws))
    if all(isinstance(law, Unbiased | Contractive) for law in laws):
        return Contractive(lambda n: min(delta_of(law, n) for law in laws))
    return None
