"""Order statistics over some rows of a block; how many is traced."""

import jax
import jax.numpy as jnp

from fedjax_fm.robust.rule import count_of


def masked_median(block: jax.Array, chosen: jax.Array) -> jax.Array:
    """The median over the chosen rows; zeros where there are none.

    Args:
      block: f32[C, n].
      chosen: bool[C].

    Returns:
      f32[n].
    """
    n = count_of(chosen)
    ordered = sorted_rows(block, chosen)
    low, high = ordered[jnp.maximum(n - 1, 0) // 2], ordered[n // 2]
    return jnp.where(n > 0, low / 2 + high / 2, 0.0)


def mean_around(centre: jax.Array, block: jax.Array, chosen: jax.Array) -> jax.Array:
    """The mean over the chosen entries, exact where all of them are the centre.

    Args:
      centre: f32[n], one of the chosen entries or close to them.
      block: f32[C, n].
      chosen: bool[C, n] or bool[C, 1].

    Returns:
      f32[n]; zeros where nothing is chosen.
    """
    count = jnp.sum(chosen, axis=0)
    centre = jnp.where(count > 0, centre, 0.0)
    sums = jnp.sum(jnp.where(chosen, block - centre, 0.0), axis=0)
    return centre + sums / jnp.maximum(count, 1)


def sorted_rows(block: jax.Array, chosen: jax.Array) -> jax.Array:
    """Each column from its smallest chosen entry on; then infinity.

    Args:
      block: f32[C, n].
      chosen: bool[C].

    Returns:
      f32[C, n].
    """
    return jnp.sort(jnp.where(chosen[:, None], block, jnp.inf), axis=0)
