"""Number formats with one scale a block, as in quantised weights: int2 to int8, NF4."""

import jax.numpy as jnp

from fedjax_fm.channels.arguments import checked_block, checked_whole
from fedjax_fm.channels.buffers import cut, pack, whole
from fedjax_fm.channels.laws import Contractive, of_blocks
from fedjax_fm.channels.vectors import blocks_of, vector_channel
from fedjax_fm.kernels import int_block_encode, nf4_decode, nf4_encode
from fedjax_fm.types import Channel


def int_blocks(bits: int = 8, block_size: int | None = 256) -> Channel:
    """Integers of `bits` bits with one scale a block, rounded to the nearest.

        code_i = round(x_i / scale_b),  scale_b = max|x_b| / (2^(bits - 1) - 1)

    Contractive: |C(x)_i - x_i| is at most scale_b / 2 in a block b and never more than
    |x_i|, and the largest entry is exact, so delta >= 1 / block_size. Deterministic,
    hence biased; `quantize(bits, "max")` is the unbiased form. Bits: `bits` an entry
    plus 32 a block.

    Args:
      bits: width of a code, 2 to 8.
      block_size: entries that share a scale; None for the whole message.

    Returns:
      A channel without state.

    Raises:
      ValueError: `bits` or `block_size` is out of its bounds.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.int_blocks(bits=3)
      >>> tree = {"w": jnp.array([3.0, -1.2, 0.4, 2.0])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [3.0, -1.0, 0.0, 2.0]
      >>> channel.bits(payload)
      48
    """
    bits = checked_whole("bits", bits, least=2, most=8)
    block_size = checked_block(block_size)
    top = 2 ** (bits - 1) - 1

    def encode(x, live, key):
        blocks = blocks_of(x, block_size)
        signed, scales = int_block_encode(blocks, bits)
        signed = signed.reshape(-1)[: x.shape[0]]
        codes = (signed.astype(jnp.int32) + top).astype(jnp.uint8)
        return (), (pack(codes, 2**bits, live), cut(scales, live, blocks.shape[1]))

    def decode(values, side, n):
        codes = side[0].unpack().astype(jnp.int32) - top
        width = min(block_size or n, n)
        return codes * jnp.repeat(whole(side[1]), width)[:n]

    law, setting = _law(block_size), (bits, block_size)
    return vector_channel("int_blocks", setting, encode, decode, nearest=True, law=law)


def nf4(block_size: int | None = 64) -> Channel:
    """NormalFloat: 16 levels at quantiles of a normal law, one scale a block.

    Rounded to the nearest level. Contractive with delta >= 1 / block_size: zero and the
    largest entry are exact, and no entry gains an error above its magnitude.
    Deterministic, hence biased, and not odd: C(-x) is not -C(x). Bits: 4 an entry plus
    32 a block.

    Args:
      block_size: entries that share a scale; None for the whole message.

    Returns:
      A channel without state.

    Raises:
      ValueError: `block_size` is below 1.

    References:
      Dettmers et al., QLoRA, 2023, arXiv 2305.14314, section 3 and appendix E.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.nf4()
      >>> tree = {"w": jnp.array([1.0, 0.0, -0.5, 0.25])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].round(3).tolist()
      [1.0, 0.0, -0.5250000357627869, 0.2460000067949295]
      >>> channel.bits(payload)
      48
    """
    block_size = checked_block(block_size)

    def encode(x, live, key):
        blocks = blocks_of(x, block_size)
        codes, scales = nf4_encode(blocks)
        codes = codes.reshape(-1)[: x.shape[0]]
        return (), (pack(codes, 16, live), cut(scales, live, blocks.shape[1]))

    def decode(values, side, n):
        codes = blocks_of(side[0].unpack(), block_size)
        return nf4_decode(codes, whole(side[1])).reshape(-1)[:n]

    law = _law(block_size)
    return vector_channel("nf4", block_size, encode, decode, nearest=True, law=law)


def _law(block_size: int | None) -> Contractive:
    """The largest entry of a block is exact, and no entry loses more than itself."""
    return Contractive(of_blocks(lambda d: 1 / d, block_size))
