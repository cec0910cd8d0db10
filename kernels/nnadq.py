"""Quantisation with as many levels as the range deserves (NNADQ of FedOBD)."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.scaling import largest_magnitude, power_of_two

MAX_BITS = 22  # of a magnitude: beyond, f32 rounds itself


def nnadq_encode(
    x: jax.Array, weight: float, original_bits: int = 32
) -> tuple[jax.Array, ...]:
    """Rounds |x - offset| to a multiple of norm / level, offset the middle of the
    range, norm its half.

    level = floor(max(1, sqrt(norm * original_bits * ln 4 / weight))), at most 2^22 - 1:
    the best trade of error against bits when a bit costs `weight`. The error of an
    entry is at most norm / (2 level), a constant comes back exactly. Deterministic,
    hence biased. A value that is not finite makes norm and offset so.

    Args:
      x: f32[n], n >= 1.
      weight: price of a bit against error, positive.
      original_bits: of an entry without compression.

    Returns:
      (codes u32[n], norm f32[], offset f32[], level u32[]); a code has its sign in the
      lowest bit, its magnitude above.

    References:
      Chen et al., FedOBD, 2023, arXiv 2208.05174; the authors' code, cyyever/torch_algorithm.
    """
    # Near one, where neither the range nor the inverse of the norm leaves that of f32.
    power = power_of_two(largest_magnitude(x))
    scaled = x * power
    offset = jnp.min(scaled) * 0.5 + jnp.max(scaled) * 0.5
    centred = scaled - offset
    norm = largest_magnitude(
        centred
    )  # NaN if an entry is, though minimum and maximum may drop it
    ln4 = 1.3862943611198906
    best = jnp.floor(
        jnp.sqrt(norm / power) * jnp.float32((original_bits * ln4 / weight) ** 0.5)
    )
    level = jnp.clip(jnp.nan_to_num(best, nan=1.0), 1, 2**MAX_BITS - 1).astype(
        jnp.uint32
    )
    relative = jnp.nan_to_num(jnp.abs(centred) / jnp.where(norm > 0, norm, 1.0))
    magnitude = jnp.minimum(
        jnp.round(relative * level.astype(jnp.float32)).astype(jnp.uint32), level
    )
    codes = (magnitude << 1) | jnp.signbit(centred).astype(jnp.uint32)
    return codes, norm / power, offset / power, level


def nnadq_width(level: jax.Array) -> jax.Array:
    """Bits of a code, 1 + ceil(log2(level + 1)): u32[] -> u32[]."""
    return 33 - jax.lax.clz(level)


def nnadq_decode(
    codes: jax.Array, norm: jax.Array, offset: jax.Array, level: jax.Array
) -> jax.Array:
    """The inverse map: u32[n] -> f32[n]."""
    distance = (codes >> 1).astype(jnp.float32) / level.astype(jnp.float32) * norm
    decoded = offset + jnp.where((codes & 1) == 1, -distance, distance)
    # Rounding may pass the largest float.
    most = jnp.finfo(jnp.float32).max
    return jnp.where(
        jnp.isfinite(offset) & jnp.isfinite(norm),
        jnp.clip(decoded, -most, most),
        decoded,
    )


def to_planes(codes: jax.Array, n_planes: int) -> jax.Array:
    """Bit planes: u32[n] -> u8[n_planes, ceil(n / 8)].

    The first w planes are all that codes of w bits need.
    """
    planes = (codes[None, :] >> jnp.arange(n_planes, dtype=jnp.uint32)[:, None]) & 1
    bits = jnp.pad(planes, ((0, 0), (0, -codes.shape[0] % 8))).reshape(n_planes, -1, 8)
    return jnp.sum(bits << jnp.arange(8, dtype=jnp.uint32), axis=-1).astype(jnp.uint8)


def from_planes(planes: jax.Array, n: int) -> jax.Array:
    """The inverse of `to_planes`: u8[n_planes, ceil(n / 8)] -> u32[n]."""
    bits = (
        planes[:, :, None].astype(jnp.uint32) >> jnp.arange(8, dtype=jnp.uint32)
    ) & 1
    bits = bits.reshape(planes.shape[0], -1)[:, :n]
    return jnp.sum(
        bits << jnp.arange(planes.shape[0], dtype=jnp.uint32)[:, None],
        axis=0,
        dtype=jnp.uint32,
    )
