"""NNADQ, the quantiser of FedOBD: the range of a tensor decides its levels."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.scaling import largest_magnitude, power_of_two

MAX_BITS = 22  # of a magnitude: beyond, f32 rounds itself


def nnadq_encode(
    x: jax.Array, weight: float, original_bits: int = 32
) -> tuple[jax.Array, ...]:
    """Rounds entries to 2 level + 1 points around the middle of their range.

        level = floor(max(1, sqrt(norm * original_bits * ln 4 / weight))),  below 2^22

    offset is the middle of the range and norm its half; |x - offset| becomes a multiple
    of norm / level. That level is the best trade of error against bits when a bit costs
    `weight`. The error of an entry is at most norm / (2 level), a constant comes back
    exactly. Deterministic, hence biased. A value that is not finite makes norm and
    offset so.

    Args:
      x: f32[n], n >= 1.
      weight: price of a bit against error, positive.
      original_bits: of an entry without compression.

    Returns:
      (codes u32[n], norm f32[], offset f32[], level u32[]); a code has its sign in the
      lowest bit, its magnitude above.

    References:
      Chen et al., FedOBD, 2023, arXiv 2208.05174; the authors' code,
      github.com/cyyever/torch_algorithm.
    """
    # Near one, where neither the range nor the inverse of the norm leaves that of f32.
    power = power_of_two(largest_magnitude(x))
    scaled = x * power
    offset = jnp.min(scaled) * 0.5 + jnp.max(scaled) * 0.5
    centred = scaled - offset
    # NaN if an entry is, though minimum and maximum may drop it.
    norm = largest_magnitude(centred)
    ln4 = 1.3862943611198906
    factor = jnp.float32((original_bits * ln4 / weight) ** 0.5)
    best = jnp.floor(jnp.sqrt(norm / power) * factor)
    best = jnp.nan_to_num(best, nan=1.0)
    level = jnp.clip(best, 1, 2**MAX_BITS - 1).astype(jnp.uint32)
    relative = jnp.abs(centred) / jnp.where(norm > 0, norm, 1.0)
    steps = jnp.nan_to_num(relative) * level.astype(jnp.float32)
    magnitude = jnp.minimum(jnp.round(steps).astype(jnp.uint32), level)
    codes = (magnitude << 1) | jnp.signbit(centred).astype(jnp.uint32)
    return codes, norm / power, offset / power, level


def nnadq_width(level: jax.Array) -> jax.Array:
    """Bits of a code, 1 + ceil(log2(level + 1)), u32[].

    Args:
      level: u32[].
    """
    return 33 - jax.lax.clz(level)


def nnadq_decode(
    codes: jax.Array, norm: jax.Array, offset: jax.Array, level: jax.Array
) -> jax.Array:
    """The inverse of `nnadq_encode`: f32[n].

    Args:
      codes: u32[n].
      norm: f32[], half the range.
      offset: f32[], its middle.
      level: u32[], levels on each side of the middle.
    """
    distance = (codes >> 1).astype(jnp.float32) / level.astype(jnp.float32) * norm
    decoded = offset + jnp.where((codes & 1) == 1, -distance, distance)
    # Rounding may pass the largest float.
    most = jnp.finfo(jnp.float32).max
    is_finite = jnp.isfinite(offset) & jnp.isfinite(norm)
    return jnp.where(is_finite, jnp.clip(decoded, -most, most), decoded)


def to_planes(codes: jax.Array, n_planes: int) -> jax.Array:
    """Bit planes, u8[n_planes, ceil(n / 8)]; the first w hold codes of w bits.

    Args:
      codes: u32[n].
      n_planes: planes to write.
    """
    planes = (codes[None, :] >> jnp.arange(n_planes, dtype=jnp.uint32)[:, None]) & 1
    bits = jnp.pad(planes, ((0, 0), (0, -codes.shape[0] % 8))).reshape(n_planes, -1, 8)
    places = jnp.arange(8, dtype=jnp.uint32)
    octets = jnp.sum(bits << places[None, None], axis=-1)
    return octets.astype(jnp.uint8)


def from_planes(planes: jax.Array, n: int) -> jax.Array:
    """The inverse of `to_planes`: u32[n].

    Args:
      planes: u8[n_planes, ceil(n / 8)].
      n: codes.
    """
    octets = planes[:, :, None].astype(jnp.uint32)
    places = jnp.arange(8, dtype=jnp.uint32)
    bits = (octets >> places[None, None]) & 1
    bits = bits.reshape(planes.shape[0], -1)[:, :n]
    shifts = jnp.arange(planes.shape[0], dtype=jnp.uint32)[:, None]
    return jnp.sum(bits << shifts, axis=0, dtype=jnp.uint32)
