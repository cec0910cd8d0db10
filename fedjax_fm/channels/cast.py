"""Floats of fewer bits."""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.channels.arguments import checked_block
from fedjax_fm.channels.buffers import cut, whole
from fedjax_fm.channels.vectors import blocks_of, vector_channel
from fedjax_fm.types import Channel, Rows

DTYPES = {
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
    "float8_e4m3fn": jnp.float8_e4m3fn,
    "float8_e5m2": jnp.float8_e5m2,
}


def cast(dtype: str = "bfloat16", block_size: int | None = None) -> Channel:
    """Rounds every entry to the nearest number of a narrower type.

    Contractive: relative error at most u = 2^-8 (bfloat16), 2^-11 (float16), 2^-4
    (float8_e4m3fn), 2^-3 (float8_e5m2) for normal numbers, delta >= 1 - u^2; below the
    smallest one entries fade to zero, above the largest (448 in float8_e4m3fn) they
    become infinity or NaN. With a `block_size`, each block is scaled by the power of
    two that brings its largest entry near the top of the range, as in microscaling
    formats. Bits: 16 or 8 an entry, plus 8 a block.

    Args:
      dtype: "bfloat16", "float16", "float8_e4m3fn" or "float8_e5m2".
      block_size: entries that share a power of two, 32 in the OCP standard; None for no scale.

    References:
      Micikevicius et al., FP8 formats, 2022, arXiv 2209.05433; Rouhani et al.,
      Microscaling, 2023, arXiv 2310.10537.
    """
    checks.choice("dtype", dtype, DTYPES)
    block_size = checked_block(block_size)
    narrow = DTYPES[dtype]
    top = int(jnp.finfo(narrow).maxexp) - 1  # exponent of the largest number

    def exponents(blocks: jax.Array) -> jax.Array:
        """u8[b]: biased exponent of each block's shift."""
        words = jax.lax.bitcast_convert_type(
            jnp.max(jnp.abs(blocks), axis=-1), jnp.uint32
        )
        # One below the top: the largest entry may round up to the next power of two.
        return jnp.clip((words >> 23).astype(jnp.int32) - top + 1, 1, 253).astype(
            jnp.uint8
        )

    def power(exponents: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(
            exponents.astype(jnp.uint32) << 23, jnp.float32
        )

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

    return vector_channel("cast", (dtype, block_size), encode, decode, nearest=True)
