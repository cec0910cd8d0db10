"""Floats of fewer bits."""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.channels.arguments import checked_block
from fedjax_fm.channels.buffers import cut, whole
from fedjax_fm.channels.laws import Contractive, constant
from fedjax_fm.channels.vectors import blocks_of, vector_channel
from fedjax_fm.types import Channel, Rows

DTYPES = {
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
    "float8_e4m3fn": jnp.float8_e4m3fn,
    "float8_e5m2": jnp.float8_e5m2,
}


def cast(dtype: str = "bfloat16", block_size: int | None = None) -> Channel:
    """Rounds every entry to the nearest number of a narrower floating type.

    Contractive: delta >= 1 - u^2, u the largest relative error of a normal number: 2^-8
    (bfloat16), 2^-11 (float16), 2^-4 (float8_e4m3fn), 2^-3 (float8_e5m2). Entries below
    the smallest number fade to zero. Entries above the largest one (448 in
    float8_e4m3fn) become infinity or NaN. With a `block_size`, each block is first
    scaled by the power of two that brings its largest entry near the top of the range,
    as in microscaling formats. Bits: 16 or 8 an entry, plus 8 a block.

    Args:
      dtype: "bfloat16", "float16", "float8_e4m3fn" or "float8_e5m2".
      block_size: entries that share a power of two, 32 in the OCP standard; None for no
        scale.

    Returns:
      A channel without state.

    Raises:
      ValueError: another `dtype`, or a `block_size` below 1.

    References:
      Micikevicius et al., FP8 formats, 2022, arXiv 2209.05433; Rouhani et al.,
      Microscaling, 2023, arXiv 2310.10537.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.cast("bfloat16")
      >>> tree = {"w": jnp.array([1.0, 3.14159])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [1.0, 3.140625]
      >>> channel.bits(payload)
      32
    """
    checks.choice("dtype", dtype, DTYPES)
    block_size = checked_block(block_size)
    narrow = DTYPES[dtype]
    top = int(jnp.finfo(narrow).maxexp) - 1  # exponent of the largest number

    def exponents(blocks: jax.Array) -> jax.Array:
        """u8[b]: biased exponent of each block's shift."""
        largest = jnp.max(jnp.abs(blocks), axis=-1)
        words = jax.lax.bitcast_convert_type(largest, jnp.uint32)
        # One below the top: the largest entry may round up to the next power of two.
        shifts = (words >> 23).astype(jnp.int32) - top + 1
        return jnp.clip(shifts, 1, 253).astype(jnp.uint8)

    def power(exponents: jax.Array) -> jax.Array:
        """f32[b]: two to the exponents, which are biased by 127."""
        words = exponents.astype(jnp.uint32) << 23
        return jax.lax.bitcast_convert_type(words, jnp.float32)

    def encode(x, live, key):
        n, side = x.shape[0], ()
        if block_size is not None:
            blocks = blocks_of(x, block_size)
            shift = exponents(blocks)
            x = (blocks * power(254 - shift)[:, None]).reshape(-1)[:n]
            side = (cut(shift, live, blocks.shape[1]),)
        values = x.astype(narrow)
        return (values if live is None else Rows(values, live)), side

    def decode(values, side, n):
        x = whole(values).astype(jnp.float32)
        if block_size is None:
            return x
        blocks = blocks_of(x, block_size)
        decoded = blocks * power(whole(side[0]))[:, None]
        # The largest float may have been rounded up to 2^128.
        largest = jnp.copysign(jnp.finfo(jnp.float32).max, blocks)
        overflows = jnp.isinf(decoded) & jnp.isfinite(blocks)
        return jnp.where(overflows, largest, decoded).reshape(-1)[:n]

    error = float(jnp.finfo(narrow).eps) / 2
    law, setting = Contractive(constant(1 - error**2)), (dtype, block_size)
    return vector_channel("cast", setting, encode, decode, nearest=True, law=law)
