"""Distances between uploads, and what is made of uploads by coefficients.

Distances come from one Gram matrix, summed over blocks of coordinates. In float32 it
loses digits to what all uploads have in common, so that this is subtracted first: the
median of each coordinate, which no liar can move far, where a mean would take over the
size of the largest lie and the digits of all others with it.
"""

import jax
import jax.numpy as jnp

from fedjax_fm.robust.blocks import over_blocks, sum_over_blocks
from fedjax_fm.robust.masked import masked_median
from fedjax_fm.robust.rule import Uploads
from fedjax_fm.types import Tree

EXACT = jax.lax.Precision.HIGHEST


def gram_of(uploads: Uploads) -> jax.Array:
    """Inner products of uploads around their median, the whole message as one vector.

    Args:
      uploads: of a cohort.

    Returns:
      f32[C, C]; infinity or NaN where float32 cannot hold them.
    """

    def of_block(block):
        centred = block - masked_median(block, uploads.accepted)
        centred = jnp.where(uploads.accepted[:, None], centred, 0.0)
        return jnp.matmul(centred, centred.T, precision=EXACT)

    return sum_over_blocks(of_block, uploads.values)


def squared_distances(gram: jax.Array) -> jax.Array:
    """The squared distances of points whose inner products are known.

        |x_i - x_j|^2 = <x_i, x_i> + <x_j, x_j> - 2 <x_i, x_j>

    Args:
      gram: f32[C, C]; entries beyond float32 are infinite, and distances with them.

    Returns:
      f32[C, C], 0 on the diagonal.
    """
    squares = jnp.diagonal(gram)
    found = squares[:, None] + squares[None, :] - 2 * gram
    found = jnp.where(jnp.isnan(found), jnp.inf, jnp.maximum(found, 0.0))
    return jnp.where(jnp.eye(len(gram), dtype=bool), 0.0, found)


def combined(coefficients: jax.Array, values: Tree) -> Tree:
    """The sum sum_k c_k x_k.

    Args:
      coefficients: f32[C].
      values: leaves [C, ...].

    Returns:
      Leaves [...].
    """

    def of_block(block):
        return jnp.matmul(coefficients, block, precision=EXACT)

    return over_blocks(of_block, values)


def affine(coefficients: jax.Array, values: Tree) -> Tree:
    """The sum sum_k c_k x_k of coefficients that add up to 1.

    It is taken around the row of the largest coefficient, so that equal rows give that
    row to the last bit.

    Args:
      coefficients: f32[C].
      values: leaves [C, ...].

    Returns:
      Leaves [...].
    """
    first = jnp.argmax(coefficients)

    def of_block(block):
        centre = block[first]
        # 0 times what overflows would be NaN
        around = jnp.where(coefficients[:, None] != 0, block - centre, 0.0)
        return centre + jnp.matmul(coefficients, around, precision=EXACT)

    return over_blocks(of_block, values)


def shares(weights: jax.Array) -> jax.Array:
    """Weights that add up to 1; zeros where all are 0.

    Args:
      weights: f32[C], at least 0.
    """
    whole = jnp.sum(weights)
    return weights / jnp.where(whole > 0, whole, 1.0)
