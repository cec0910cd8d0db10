"""The largest magnitude, NaN included, and powers of two that keep squares finite."""

import jax
import jax.numpy as jnp

_FAR = 88  # 2^40 * 2^88 = 2^128, the end of the range


def power_of_two(largest: jax.Array) -> jax.Array:
    """A factor with which the largest magnitude lies within 2^-40 and 2^48, f32[...].

    2^-88, 1 or 2^88. Products with it and its inverse are exact. 1 where the largest
    lies there already, so that what is computed of ordinary numbers stays as it is, and
    for NaN. Entries 2^-78 times the largest may become zero.

    Args:
      largest: f32[...], magnitudes.
    """
    if_small = jnp.where(largest < 2.0**-40, 2.0**_FAR, 1.0)
    return jnp.where(largest > 2.0**40, 2.0**-_FAR, if_small)


def largest_magnitude(x: jax.Array, axis: int | None = -1) -> jax.Array:
    """The largest |x|, f32[...]; NaN if there is one, 0 of nothing.

    By bit patterns, which grow with the magnitude, NaN above infinity: XLA's CPU
    backend compiles a maximum of floats, from some thousand entries on, to instructions
    that drop NaN.

    Args:
      x: f32[...] (other floats are cast).
      axis: over which; None for all.
    """
    words = jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)
    bits = words & jnp.int32(0x7FFFFFFF)
    largest = jnp.max(bits, axis=axis, initial=0)
    return jax.lax.bitcast_convert_type(largest, jnp.float32)
