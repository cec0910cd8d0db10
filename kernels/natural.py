"""Rounding to powers of two (natural compression)."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.random_bits import random_bits

MANTISSA = 23  # bits of an f32


def natural_encode(x: jax.Array, key: jax.Array) -> jax.Array:
    """Draws for each entry a power of two beside it, without bias, u32[n] of 9 bits.

    2^e (1 + f) becomes 2^(e + 1) with probability f, else 2^e: unbiased, with variance
    4^e f (1 - f), at most an eighth of the square. A code is the sign and the exponent.
    Adding 23 random bits to the mantissa and keeping the carry is exactly that law,
    denormal numbers included. Magnitudes above 2^127 may round up to infinity; NaN
    becomes infinity.

    Args:
      x: f32[n].
      key: consumed; one word an entry.

    References:
      Horvath et al., Natural compression, 2019, arXiv 1905.10988, definition 1.
    """
    words = jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.uint32)
    magnitude = words & jnp.uint32(0x7FFFFFFF)
    finite = magnitude < jnp.uint32(0x7F800000)
    noise = random_bits(key, x.shape[0]) >> (32 - MANTISSA)
    exponent = jnp.where(finite, magnitude + noise, jnp.uint32(0x7F800000)) >> MANTISSA
    return ((words >> 31) << 8) | exponent


def natural_decode(codes: jax.Array) -> jax.Array:
    """The inverse of `natural_encode`: f32[n], powers of two, zeros and infinities.

    Args:
      codes: u32[n], below 2**9.
    """
    codes = codes.astype(jnp.uint32)
    words = ((codes >> 8) << 31) | ((codes & 0xFF) << MANTISSA)
    return jax.lax.bitcast_convert_type(words, jnp.float32)
