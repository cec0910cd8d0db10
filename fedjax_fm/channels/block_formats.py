"""Number formats with a scale a block, as in quantised weights: int4, int8, NF4."""

import jax.numpy as jnp

from fedjax_fm.channels.arguments import checked_block, checked_whole
from fedjax_fm.channels.buffers import cut, pack, whole
from fedjax_fm.channels.vectors import blocks_of, vector_channel
from fedjax_fm.kernels import int_block_encode, nf4_decode, nf4_encode
from fedjax_fm.types import Channel


def int_blocks(bits: int = 8, block_size: int | None = 256) -> Channel:
    """Integers of `bits` bits with one scale a block, rounded to nearest.

    Contractive: |C(x)_i - x_i| <= max|x_b| / (2 (2^(bits - 1) - 1)) in a block b, never
    more than |x_i|, and the largest entry is exact, so delta >= 1 / block_size.
    Deterministic, hence biased; `quantize(bits, "max")` is the unbiased form. Bits:
    `bits` an entry plus 32 a block.

    Args:
      bits: 2 to 8.
      block_size: entries that share a scale; None for the whole message.
    """
    bits = checked_whole("bits", bits, least=2, most=8)
    block_size = checked_block(block_size)
    top = 2 ** (bits - 1) - 1

    def encode(x, live, key):
        blocks = blocks_of(x, block_size)
        codes, scales = int_block_encode(blocks, bits)
        codes = (codes.reshape(-1)[: x.shape[0]].astype(jnp.int32) + top).astype(
            jnp.uint8
        )
        return (), (pack(codes, 2**bits, live), cut(scales, live, blocks.shape[1]))

    def decode(values, side, n):
        codes = side[0].unpack().astype(jnp.int32) - top
        return codes * jnp.repeat(whole(side[1]), min(block_size or n, n))[:n]

    return vector_channel(
        "int_blocks", (bits, block_size), encode, decode, nearest=True
    )


def nf4(block_size: int | None = 64) -> Channel:
    """NormalFloat: 16 levels at quantiles of a normal law, one scale a block, rounded to nearest.

    Contractive with delta >= 1 / block_size (zero and the largest entry are exact, no
    entry gains error above its magnitude). Deterministic, hence biased, and not odd:
    C(-x) is not -C(x). Bits: 4 an entry plus 32 a block.

    Args:
      block_size: entries that share a scale; None for the whole message.

    References:
      Dettmers et al., QLoRA, 2023, arXiv 2305.14314, section 3 and appendix E.
    """
    block_size = checked_block(block_size)

    def encode(x, live, key):
        blocks = blocks_of(x, block_size)
        codes, scales = nf4_encode(blocks)
        return (), (
            pack(codes.reshape(-1)[: x.shape[0]], 16, live),
            cut(scales, live, blocks.shape[1]),
        )

    def decode(values, side, n):
        return nf4_decode(
            blocks_of(side[0].unpack(), block_size), whole(side[1])
        ).reshape(-1)[:n]

    return vector_channel("nf4", block_size, encode, decode, nearest=True)
