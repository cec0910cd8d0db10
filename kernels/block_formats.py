"""Blocks that share their largest magnitude: int2 to int8 and NF4."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import whole
from fedjax_fm.kernels.quantize import scale_of
from fedjax_fm.kernels.scaling import largest_magnitude

# QLoRA, appendix E: quantiles of N(0, 1), zero and both ends included.
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


def _relative(x: jax.Array, largest: jax.Array) -> jax.Array:
    """Entries by their block's largest, in [-1, 1]; zero where that is not finite.

    The scale tells the receiver of a block that is not finite.
    """
    largest = largest[..., None]
    # Selected entry by entry: else XLA multiplies with the inverse, and entries on a
    # level would miss it.
    divisor = jnp.where((x != 0) & (largest > 0), largest, 1.0)
    return jnp.nan_to_num(x / divisor)


def int_block_encode(x: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Nearest of 2^bits - 1 evenly spaced levels between -max and max.

    Args:
      x: f32[..., m], blocks in the last axis.
      bits: width of a code, 2 to 8.

    Returns:
      (codes i8[..., m] in [-(2^(bits - 1) - 1), 2^(bits - 1) - 1], scale f32[...] =
      max|x| / (2^(bits - 1) - 1)). |code * scale - x| <= scale / 2. A block that is not
      finite has a scale that is not.
    """
    whole("bits", bits, least=2, most=8)
    top = 2 ** (bits - 1) - 1
    largest = largest_magnitude(x)
    rounded = jnp.round(_relative(x, largest) * top)
    codes = jnp.clip(rounded, -top, top)
    return codes.astype(jnp.int8), scale_of(largest, top)


def nf4_encode(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nearest of the 16 levels of NF4.

    The levels are closest where a normal number is likeliest. They are no mirror image
    of each other: C(-x) is not -C(x).

    Args:
      x: f32[..., m], blocks in the last axis.

    Returns:
      (codes u8[..., m] below 16, scale f32[...] = max|x|).

    References:
      Dettmers et al., QLoRA, 2023, arXiv 2305.14314, appendix E.
    """
    largest = largest_magnitude(x)
    relative = _relative(x, largest)
    middles = [(NF4[i] + NF4[i + 1]) / 2 for i in range(len(NF4) - 1)]
    codes = jnp.zeros(x.shape, jnp.uint8)
    for middle in middles:
        codes = codes + (relative > middle).astype(jnp.uint8)
    return codes, largest


def nf4_decode(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """The inverse of `nf4_encode`: f32[..., m].

    Args:
      codes: u8[..., m], below 16.
      scale: f32[...], of each block.
    """
    return _levels(codes) * scale[..., None]


def _levels(codes: jax.Array) -> jax.Array:
    """The levels that codes name, one choice of two a bit.

    Fifteen selections, which fuse with what comes after; a look into a table is a
    gather, for which TPUs make arrays of indices as large as the matrix.
    """
    left = [jnp.float32(level) for level in NF4]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        pairs = zip(left[::2], left[1::2], strict=True)
        left = [jnp.where(is_set, high, low) for low, high in pairs]
    return left[0]
