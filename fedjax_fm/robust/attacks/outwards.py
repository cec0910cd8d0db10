"""Lies that leave the mean in a direction, as far as a bound on distances allows."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.robust.attacks.attack import Attack, Seen
from fedjax_fm.robust.attacks.statistics import deviation_of, mean_of
from fedjax_fm.robust.blocks import over_blocks, sum_over_blocks
from fedjax_fm.robust.distances import EXACT

Direction = Literal["mean", "sign", "deviation"]
DIRECTIONS = ("mean", "sign", "deviation")


class Margins(NamedTuple):
    """Inner products of the uploads seen, around their mean.

    Attributes:
      gram: f32[C, C], <y_i, y_j>.
      along: f32[C], <p, y_k>.
      length: f32[], |p|^2.
      visible: bool[C].
    """

    gram: jax.Array
    along: jax.Array
    length: jax.Array
    visible: jax.Array


def outwards(direction: Direction, most: Callable[[Margins], jax.Array]) -> Attack:
    """The lie mu + gamma p.

    Args:
      direction: p, of `DIRECTIONS`.
      most: `margins -> gamma`.

    Raises:
      ValueError: another direction.
    """
    checks.choice("direction", direction, DIRECTIONS)

    def lie(seen: Seen):
        def to(block):
            mean = mean_of(block, seen.visible)
            if direction == "deviation":
                return -deviation_of(block, seen.visible)
            return -mean if direction == "mean" else -jnp.sign(mean)

        def products(block):
            mean, towards = mean_of(block, seen.visible), to(block)
            around = jnp.where(seen.visible[:, None], block - mean, 0.0)
            gram = jnp.matmul(around, around.T, precision=EXACT)
            along = jnp.matmul(around, towards, precision=EXACT)
            return gram, along, jnp.sum(towards**2)

        gram, along, length = sum_over_blocks(products, seen.values)
        margins = Margins(gram=gram, along=along, length=length, visible=seen.visible)
        gamma = jnp.where(jnp.any(seen.visible), most(margins), 0.0)

        def told(block):
            return mean_of(block, seen.visible) + gamma * to(block)

        return over_blocks(told, seen.values)

    return Attack(together=lie)
