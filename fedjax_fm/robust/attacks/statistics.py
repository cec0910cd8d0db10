"""Mean and deviation of the uploads that liars see."""

import jax
import jax.numpy as jnp


def mean_of(block: jax.Array, visible: jax.Array) -> jax.Array:
    """The mean over the visible rows.

    Args:
      block: f32[C, n], zeros where not visible.
      visible: bool[C].

    Returns:
      f32[n].
    """
    return jnp.sum(block, axis=0) / jnp.maximum(jnp.sum(visible), 1)


def deviation_of(block: jax.Array, visible: jax.Array) -> jax.Array:
    """The standard deviation over the visible rows, with n - 1.

    Args:
      block: f32[C, n].
      visible: bool[C].

    Returns:
      f32[n].
    """
    around = jnp.where(visible[:, None], block - mean_of(block, visible), 0.0)
    squares = jnp.sum(around**2, axis=0)
    return jnp.sqrt(squares / jnp.maximum(jnp.sum(visible) - 1, 1))
