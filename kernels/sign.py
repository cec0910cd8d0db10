"""One bit an entry: the sign, and the mean magnitude of a block."""

import jax
import jax.numpy as jnp


def sign_encode(
    x: jax.Array, counts: jax.Array | int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The signs, and the mean magnitude of each block.

    The estimate +-scale has ||C(x) - x||^2 = (1 - delta) ||x||^2 with delta = ||x||_1^2
    / (m ||x||^2), exactly.

    Args:
      x: f32[..., m], blocks in the last axis.
      counts: entries of each block that are not padding, broadcast against the scales;
        None for m.

    Returns:
      (minus bool[..., m], scale f32[...] = sum |x| / count). Zeros count as plus (-0 as
      minus). A NaN or infinity makes the scale so.

    References:
      Karimireddy et al., Error feedback fixes SignSGD, 2019, arXiv 1901.09847, section
      3.
    """
    n = jnp.maximum(jnp.asarray(x.shape[-1] if counts is None else counts), 1)
    # Divided before it is summed: the mean of finite numbers is finite.
    shares = jnp.abs(x) / n[..., None]
    return jnp.signbit(x), jnp.sum(shares, axis=-1)


def sign_decode(minus: jax.Array, scale: jax.Array) -> jax.Array:
    """The inverse of `sign_encode`: f32[..., m].

    Args:
      minus: bool[..., m].
      scale: f32[...].
    """
    return jnp.where(minus, -scale[..., None], scale[..., None])
