"""The best scalar quantiser of a normal number, with two scales (EDEN, DRIVE)."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import whole
from fedjax_fm.kernels.scaling import largest_magnitude

# Positive centroids of the Lloyd-Max quantiser of N(0, 1) by bits; the negative ones
# mirror them. Each is the mean of the numbers nearest to it.
CENTROIDS = {
    1: (0.7978846,),
    2: (0.4527800, 1.5104176),
    3: (0.2450942, 0.7560053, 1.3439093, 2.1519457),
    4: (0.1283950, 0.3880483, 0.6567591, 0.9423405, 1.2562312, 1.6180464, 2.0690172, 2.7325896),
    5: (
        0.0658897, 0.1980518, 0.3313783, 0.4666995, 0.6049336, 0.7471357, 0.8945651, 1.0487833,
        1.2118044, 1.3863403, 1.5762281, 1.7872332, 2.0287284, 2.3177394, 2.6911196, 3.2607325,
    ),
    6: (
        0.0334095, 0.1002783, 0.1672969, 0.2345670, 0.3021928, 0.3702826, 0.4389497, 0.5083138,
        0.5785030, 0.6496556, 0.7219219, 0.7954677, 0.8704766, 0.9471549, 1.0257363, 1.1064882,
        1.1897201, 1.2757945, 1.3651410, 1.4582764, 1.5558312, 1.6585889, 1.7675419, 1.8839772,
        2.0096110, 2.1468102, 2.2989812, 2.4713048, 2.6722738, 2.9174068, 3.2404371, 3.7441013,
    ),
}  # fmt: skip


def _levels(bits: int) -> tuple[float, ...]:
    """Positive centroids of a width."""
    return CENTROIDS[whole("bits", bits, least=1, most=max(CENTROIDS))]


def lloyd_max_values(codes: jax.Array, bits: int) -> jax.Array:
    """Centroids of codes, f32[...]; the highest bit is the sign.

    Args:
      codes: unsigned[...], below 2**bits.
      bits: width of a code, 1 to 6.
    """
    levels = jnp.asarray(_levels(bits), jnp.float32)
    half = levels.shape[0]
    codes = codes.astype(jnp.uint32)
    magnitude = levels[codes & jnp.uint32(half - 1)]
    return jnp.where(codes >= half, -magnitude, magnitude)


def lloyd_max_encode(
    y: jax.Array, bits: int, scale: str = "unbiased"
) -> tuple[jax.Array, jax.Array]:
    """Quantises blocks whose entries are near Gaussian, each by its own norm.

        q = nearest centroid of y sqrt(m) / ||y||;  the receiver takes S q

    "unbiased": S = ||y||^2 / <q, y>; after a uniformly random rotation the estimate of
    what was rotated has no bias. "mse": S = <q, y> / ||q||^2, the least error for this
    q, and a contraction: ||S q - y||^2 = ||y||^2 - <q, y>^2 / ||q||^2.

    Args:
      y: f32[..., m], blocks in the last axis.
      bits: width of a code, 1 to 6. One bit is DRIVE.
      scale: "unbiased" or "mse".

    Returns:
      (codes u8[..., m] below 2**bits, S f32[...]). A zero block has S = 0; one that is
      not finite, an S that is not. The error E ||S q - y||^2 / ||y||^2 is D / (1 - D)
      for "unbiased" and D for "mse", where D is the mean squared error of the
      quantiser: 0.3634, 0.1175, 0.0345, 0.0095, 0.0025, 0.00064 for 1 to 6 bits.

    Raises:
      ValueError: `bits` or `scale` is none of these.

    References:
      Vargaftik et al., DRIVE, 2021, arXiv 2105.08339; EDEN, 2022, arXiv 2108.08842,
      algorithm 1.
    """
    levels = _levels(bits)
    if scale not in ("unbiased", "mse"):
        raise ValueError(f"expected scale 'unbiased' or 'mse', got scale={scale!r}")
    m = y.shape[-1]
    largest = largest_magnitude(y)[..., None]
    # Neither tiny nor huge entries spoil the sum of squares. A divisor that is selected
    # entry by entry is divided by; else XLA may multiply with its inverse, which is no
    # normal number for huge ones.
    small = y / jnp.where((y != 0) & (largest > 0), largest, 1.0)
    square = jnp.sum(jnp.square(small), axis=-1, keepdims=True)
    to_normal = jnp.sqrt(m / jnp.where(square > 0, square, 1.0))
    normal = jnp.abs(small) * to_normal
    middles = [(levels[i] + levels[i + 1]) / 2 for i in range(len(levels) - 1)]
    index = jnp.zeros(y.shape, jnp.uint8)
    for middle in middles:
        index = index + (normal > middle).astype(jnp.uint8)
    sign_bit = jnp.uint8(len(levels))
    codes = index + jnp.where(jnp.signbit(y), sign_bit, jnp.uint8(0))
    value = lloyd_max_values(codes, bits)
    inner = jnp.sum(value * small, axis=-1, keepdims=True)
    if scale == "unbiased":
        factor = square / jnp.where(inner > 0, inner, 1.0)
    else:
        factor = inner / jnp.sum(jnp.square(value), axis=-1, keepdims=True)
    of_zeros = jnp.where(largest == 0, 0.0, jnp.nan)
    factor = jnp.where(largest > 0, factor * largest, of_zeros)
    return codes, jnp.where(jnp.isfinite(largest), factor, jnp.nan)[..., 0]
