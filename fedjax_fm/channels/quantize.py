"""Stochastic uniform quantisation (QSGD), in buckets with one scale each."""

import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.channels.arguments import checked_block, checked_whole
from fedjax_fm.channels.buffers import cut, pack, whole
from fedjax_fm.channels.vectors import vector_channel
from fedjax_fm.kernels import stochastic_quantize_buckets
from fedjax_fm.types import Channel


def quantize(bits: int, norm: str = "max", bucket_size: int | None = 512) -> Channel:
    """Rounds every entry to one of 2s + 1 levels, s = 2^(bits - 1) - 1, without bias.

    The message is one vector, cut into buckets; code_i = sign(x_i) * floor(s |x_i| /
    norm + u_i). Unbiased; variance exactly (norm / s)^2 * sum p(1 - p), p the fraction
    above the floor. With the l2 norm that is at most min(d / s^2, sqrt(d) / s) ||x||^2
    for buckets of d; with the max norm at most d (max / s)^2 / 4, for few bits the
    smaller error in practice. Bits: `bits` an entry plus 32 a bucket.

    Args:
      bits: width of a code, 2 to 8 (one bit leaves no level beside zero: use a sign channel).
      norm: "max", or "l2" as in the paper.
      bucket_size: entries that share a scale; None for the whole message, as in the
        paper's analysis.

    References:
      Alistarh et al., QSGD, 2017, arXiv 1610.02132, sections 3.1 and 4 (buckets, max norm).
    """
    bits = checked_whole("bits", bits, least=2, most=8)
    bucket_size = checked_block(bucket_size, "bucket_size")
    return _stochastic(
        "quantize",
        (bits, norm, bucket_size),
        2 ** (bits - 1) - 1,
        2**bits,
        norm,
        bucket_size,
    )


def ternary(block_size: int | None = 256, norm: str = "max") -> Channel:
    """Three levels a block: ||x_b||_p sign(x_i) Bernoulli(|x_i| / ||x_b||_p), DIANA's
    p-quantisation (TernGrad).

    Unbiased; E||C(x) - x||^2 = sum over blocks of ||x_b||_1 ||x_b||_p - ||x_b||^2,
    exactly, which is at most omega = 1 / alpha_p - 1 times ||x||^2, alpha_max = 2 / (1
    + sqrt(d)) and alpha_l2 = 1 / sqrt(d) for blocks of d. Bits: five entries a byte
    (1.6 an entry; log2 3 = 1.585) plus 32 a block.

    Args:
      block_size: entries that share a norm; None for the whole message.
      norm: "max" (p = infinity, the best in the paper) or "l2".

    References:
      Mishchenko et al., DIANA, 2019, arXiv 1901.09269, definition 1; Wen et al.,
      TernGrad, 2017, arXiv 1705.07878.
    """
    block_size = checked_block(block_size)
    return _stochastic("ternary", (block_size, norm), 1, 3, norm, block_size)


def _stochastic(
    name: str,
    setting: tuple,
    levels: int,
    symbols: int,
    norm: str,
    bucket_size: int | None,
) -> Channel:
    checks.choice("norm", norm, ("l2", "max"))

    def encode(x, live, key):
        width = min(bucket_size or x.shape[0], x.shape[0])
        codes, scales = stochastic_quantize_buckets(x, key, levels, norm, width)
        codes = (codes + levels).astype(jnp.uint8)
        return (), (pack(codes, symbols, live), cut(scales, live, width))

    def decode(values, side, n):
        codes = side[0].unpack().astype(jnp.int32) - levels
        return codes * jnp.repeat(whole(side[1]), min(bucket_size or n, n))[:n]

    return vector_channel(name, setting, encode, decode)
