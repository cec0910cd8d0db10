"""Unbiased stochastic quantisation: QSGD, and a uniform quantiser between bounds."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import whole
from fedjax_fm.kernels.random_bits import rounding_noise
from fedjax_fm.kernels.scaling import largest_magnitude, power_of_two


def norm_of(x: jax.Array, norm: str) -> jax.Array:
    """The l2 or the max norm of the last axis, f32[...].

    Args:
      x: f32[..., n].
      norm: "l2" or "max".
    """
    scaled, power = _norm_times_power(x, norm)
    return scaled / power


def _norm_times_power(x: jax.Array, norm: str) -> tuple[jax.Array, jax.Array]:
    """(norm * p, p), f32[...] each, p a power of two with which no norm overflows."""
    if norm not in ("l2", "max"):
        raise ValueError(f"expected norm 'l2' or 'max', got {norm!r}")
    largest = largest_magnitude(x)
    if norm == "max":
        return largest, jnp.ones_like(largest)
    # Scaled by the maximum, so that neither tiny nor huge values lose the sum of
    # squares. XLA divides by a scalar as a product with its inverse, which must be a
    # normal float: beyond the bounds it would be zero.
    power, safe = power_of_two(largest), jnp.clip(largest, 2.0**-126, 2.0**126)
    squares = jnp.square(x / safe[..., None])
    return power * safe * jnp.sqrt(jnp.sum(squares, axis=-1)), power


def scale_of(norm: jax.Array, levels: int) -> jax.Array:
    """The distance of two levels, norm / levels, f32[...].

    From 2^127 on two units less in the last place, so that levels * (norm / levels),
    rounded twice, is finite.

    Args:
      norm: f32[...].
      levels: on each side of zero.
    """
    # A divisor that is selected is divided by, see `signed_codes`.
    scale = norm / jnp.where(norm > 0, levels, 1)
    return scale * jnp.where(norm > 2.0**127, 1 - 2.0**-22, 1.0)


def level_distance(x: jax.Array, norm: str, levels: int) -> jax.Array:
    """The distance of two levels, also where the l2 norm itself overflows, f32[...].

    Args:
      x: f32[..., n].
      norm: "l2" or "max".
      levels: on each side of zero.
    """
    scaled, power = _norm_times_power(x, norm)
    return scale_of(scaled, levels) / power


def round_up_or_down(steps: jax.Array, noise: jax.Array, most: int) -> jax.Array:
    """floor(steps), or one more where the noise says so, from 0 to `most`, i32[...].

    One more where noise >= 1 - (steps - floor(steps)). That is floor(steps + noise)
    without the sum, which would round up to the next integer, even from a whole number,
    when the noise is near 1. NaN gives `most`. Steps a little above `most` come from a
    rounded division.

    Args:
      steps: f32[...].
      noise: f32[...], in [0, 1).
      most: the largest result.
    """
    positive = jnp.maximum(steps, 0.0)
    steps = jnp.where(steps < most, positive, float(most))
    floor = steps.astype(jnp.int32)
    fraction = steps - floor.astype(jnp.float32)
    return floor + (noise >= 1.0 - fraction).astype(jnp.int32)


def signed_codes(
    x: jax.Array, scale: jax.Array, noise: jax.Array, levels: int
) -> jax.Array:
    """sign(x) * round(|x| / scale), i32[...], as every form of the kernel has it.

    Args:
      x: f32[...].
      scale: f32[...], distance of two levels; broadcast against x.
      noise: f32[...], in [0, 1).
      levels: on each side of zero.
    """
    # XLA divides by a constant or by a scalar as a product with its rounded inverse,
    # and entries on a level would miss it. A divisor that is selected, entry by entry,
    # is divided by. |x / scale| is |x| / scale, of which XLA would write |x| to memory,
    # since the norm reads it as well.
    divisor = jnp.where((x != 0) & (scale > 0), scale, 1.0)
    steps = jnp.abs(x / divisor)
    magnitude = round_up_or_down(steps, noise, levels)
    return jnp.where(x < 0, -magnitude, magnitude)


def stochastic_quantize(
    x: jax.Array, key: jax.Array, levels: int = 7, norm: str = "l2"
) -> tuple[jax.Array, jax.Array]:
    """QSGD: rounds every entry at random to one of two levels beside it, without bias.

        code_i = sign(x_i) floor(levels |x_i| / norm + u_i),  u_i uniform on [0, 1)

    The noise u is `rounding_noise(key, n)`, within 2**-16 of jax.random.uniform(key,
    (n,)): with jax.random it takes nine tenths of the time on CPU.

    Args:
      x: f32[n].
      key: a threefry key, consumed; one uniform number an entry.
      levels: s >= 1, quantisation levels on each side of zero.
      norm: "l2" as in the paper, or "max" (smaller error for few levels; the variance
        bound differs).

    Returns:
      (codes, scale): int8[n] (int32 above 127 levels) in [-levels, levels], and f32[] =
      norm / levels. `codes * scale` is unbiased with variance scale^2 * sum p(1 - p), p
      the fraction above the floor. x = 0 gives zeros and scale 0. An entry that is not
      finite makes the scale so: it does not pass in silence.

    References:
      Alistarh et al., QSGD, 2017, arXiv 1610.02132, section 3.1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([1.0, -7.0, 2.0])
      >>> codes, scale = stochastic_quantize(x, jax.random.key(0), levels=7, norm="max")
      >>> codes.tolist(), float(scale)
      ([1, -7, 2], 1.0)
    """
    whole_vector = max(1, x.shape[0])
    codes, scales = stochastic_quantize_buckets(
        x, key, levels, norm=norm, bucket_size=whole_vector
    )
    return codes, scales[0]


def stochastic_quantize_buckets(
    x: jax.Array,
    key: jax.Array,
    levels: int = 7,
    norm: str = "max",
    bucket_size: int = 512,
) -> tuple[jax.Array, jax.Array]:
    """`stochastic_quantize` of each bucket of entries, in one loop.

    Entry i is rounded by number i of the key, whatever its bucket: with one bucket this
    is `stochastic_quantize`.

    Args:
      x: f32[n].
      key: a threefry key, consumed; one uniform number an entry.
      levels: s >= 1, quantisation levels on each side of zero.
      norm: "max" or "l2", of a bucket.
      bucket_size: entries of a bucket; the last one may be shorter.

    Returns:
      (codes, scales): codes as there, [n]; f32[max(1, ceil(n / bucket_size))]. Entry i
      decodes to codes[i] * scales[i // bucket_size].

    References:
      Alistarh et al., QSGD, 2017, arXiv 1610.02132, section 4 (buckets, max norm).
    """
    whole("levels", levels, least=1)
    whole("bucket_size", bucket_size, least=1)
    x = jnp.asarray(x, jnp.float32)
    n = x.shape[0]
    width = max(1, min(bucket_size, n))
    n_buckets = max(1, -(-n // width))
    buckets = jnp.pad(x, (0, n_buckets * width - n)).reshape(-1, width)
    scales = level_distance(buckets, norm, levels)
    noise = rounding_noise(key, buckets.size).reshape(buckets.shape)
    codes = signed_codes(buckets, scales[:, None], noise, levels)
    dtype = jnp.int8 if levels <= 127 else jnp.int32
    return codes.reshape(-1)[:n].astype(dtype), scales


def uniform_quantize(
    x: jax.Array, key: jax.Array, bits: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rounds every entry at random to one of 2**bits points from min(x) to max(x).

        code_i = floor((x_i - low) / step + u_i),  step = (max - min) / (2**bits - 1)

    Unbiased; the points are evenly spaced and the variance is step^2 * sum p(1 - p) <=
    n step^2 / 4, p the fraction above the floor.

    Args:
      x: f32[n].
      key: a threefry key, consumed; `rounding_noise(key, n)` is the noise.
      bits: 1 to 16.

    Returns:
      (codes, low, step): u8[n] (u16 above 8 bits), f32[], f32[]; `uniform_dequantize`
      inverts it. All entries equal: codes and step 0. An entry that is not finite makes
      low or step so, as does, with one bit, a range beyond the largest float.

    References:
      Suresh et al., Distributed mean estimation with limited communication, 2017, arXiv
      1611.00429, section 2.2.
    """
    whole("bits", bits, least=1, most=16)
    x = jnp.asarray(x, jnp.float32)
    most = 2**bits - 1
    if x.shape[0] > 0:
        # A minimum may drop NaN, see `largest_magnitude`.
        has_nan = jnp.isnan(largest_magnitude(x))
        low = jnp.where(has_nan, jnp.nan, jnp.min(x))
        high = jnp.max(x)
    else:
        low = high = jnp.float32(0)
    # Halves, so that a range beyond the largest float does not overflow.
    step = (high / 2 - low / 2) / jnp.where(high > low, most / 2, 1.0)
    steps = (x / 2 - low / 2) / jnp.where((x > low) & (step > 0), step / 2, 1.0)
    codes = round_up_or_down(steps, rounding_noise(key, x.shape[0]), most)
    return codes.astype(jnp.uint8 if bits <= 8 else jnp.uint16), low, step


def uniform_dequantize(codes: jax.Array, low: jax.Array, step: jax.Array) -> jax.Array:
    """The points that `uniform_quantize` chose, f32[n].

    Args:
      codes: unsigned[n].
      low: f32[], the first point.
      step: f32[], the distance of two points.
    """
    return low + codes.astype(jnp.float32) * step
