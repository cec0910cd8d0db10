"""One bit an entry: the sign, and the mean magnitude of a block."""

import jax
import jax.numpy as jnp


def sign_encode(
    x: jax.Array, counts: jax.Array | int | None = None
) -> tuple[jax.Array, jax.Array]:
    """f32[..., m] -> (minus bool[..., m], scale f32[...] = sum |x| / count).

    The estimate +-scale has ||C(x) - x||^2 = (1 - delta) ||x||^2 with delta = ||x||_1^2
    / (m ||x||^2), exactly. Zeros count as plus (-0 as minus). A NaN or infinity makes
    the scale so.

    Args:
      counts: entries of each block that are not padding, broadcast against the scales; None for m.

    References:
      Karimireddy et al., Error feedback fixes SignSGD, 2019, arXiv 1901.09847, section 3.
    """
    n = jnp.maximum(jnp.asarray(x.shape[-1] if counts is None else counts), 1)
    # Divided before it is summed: the mean of finite numbers is finite.
    return jnp.signbit(x), jnp.sum(jnp.abs(x) / n[..., None], axis=-1)


def sign_decode(minus: jax.Array, scale: jax.Array) -> jax.Array:
    """The inverse map: bool[..., m], f32[...] -> f32[..., m]."""
    return jnp.where(minus, -scale[..., None], scale[..., None])
