"""What a lie is, and who lies."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fedjax_fm import checks
from fedjax_fm.types import Tree


class Seen(NamedTuple):
    """What liars of a cohort know.

    Attributes:
      values: f32 leaves [C, ...].
      visible: bool[C], the uploads that they see.
      n: i32[], all uploads of the cohort.
      n_liars: i32[], of these.
    """

    values: list
    visible: jax.Array
    n: jax.Array
    n_liars: jax.Array


class Attack(NamedTuple):
    """A lie; one of the two.

    Attributes:
      alone: `(own upload, message, key) -> upload`, of a client that knows what it was
        sent and what it would send.
      together: `Seen -> leaves [...]`, of liars that know what others send.
    """

    alone: Callable[[Tree, Tree, jax.Array], Tree] | None = None
    together: Callable[[Seen], list] | None = None


def liars_of(n_clients: int, share: float, *, seed: int = 0) -> tuple[int, ...]:
    """Draws who lies.

    Args:
      n_clients: of the population.
      share: of them, 0 <= share < 1; rounded down.
      seed: of the draw.

    Returns:
      Ids in order.

    Raises:
      TypeError, ValueError: a number out of bounds.

    Example:
      >>> len(liars_of(10, 0.2))
      2
    """
    checks.whole("n_clients", n_clients, least=1)
    checks.real("share", share, least=0, below=1)
    checks.whole("seed", seed, least=0)
    order = np.random.default_rng(seed).permutation(n_clients)
    drawn = np.sort(order[: int(share * n_clients + 1e-9)])
    return tuple(drawn.tolist())
