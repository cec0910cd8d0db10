"""Stochastic uniform quantisation (QSGD), in buckets with one scale each."""

import math
from functools import partial

import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.channels.arguments import checked_block, checked_whole
from fedjax_fm.channels.buffers import cut, pack, whole
from fedjax_fm.channels.laws import Unbiased, of_blocks
from fedjax_fm.channels.vectors import vector_channel
from fedjax_fm.kernels import stochastic_quantize_buckets
from fedjax_fm.types import Channel


def quantize(bits: int, norm: str = "max", bucket_size: int | None = 512) -> Channel:
    """Rounds every entry at random to one of 2s + 1 levels, s = 2^(bits - 1) - 1.

        code_i = sign(x_i) floor(s |x_i| / norm + u_i),  C(x)_i = norm code_i / s,

    with u_i uniform in [0, 1) and the norm that of the entry's bucket. The message is
    one vector, cut into buckets.

    Unbiased; the variance is exactly (norm / s)^2 sum_i p_i (1 - p_i), p_i the fraction
    above the floor. With the l2 norm that is at most min(d / s^2, sqrt(d) / s) ||x||^2
    for buckets of d. With the max norm it is at most d (max / s)^2 / 4, for few bits
    the smaller error in practice. Bits: `bits` an entry plus 32 a bucket.

    Args:
      bits: width of a code, 2 to 8. One bit leaves no level beside zero; see `sign`.
      norm: "max", or "l2" as in the paper's analysis.
      bucket_size: entries that share a scale; None for the whole message, as in the
        paper's analysis.

    Returns:
      A channel without state.

    Raises:
      ValueError: an argument is out of its bounds.

    References:
      Alistarh et al., QSGD, 2017, arXiv 1610.02132, sections 3.1 and 4 (buckets, max
      norm).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.quantize(bits=4)
      >>> tree = {"w": jnp.array([7.0, -3.0, 1.5])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()  # 1.5 becomes 1 or 2
      [7.0, -3.0, 1.0]
      >>> channel.bits(payload)  # two bytes of codes, a scale
      48
    """
    bits = checked_whole("bits", bits, least=2, most=8)
    bucket_size = checked_block(bucket_size, "bucket_size")
    return _stochastic(
        "quantize",
        (bits, norm, bucket_size),
        levels=2 ** (bits - 1) - 1,
        symbols=2**bits,
        norm=norm,
        bucket_size=bucket_size,
    )


def ternary(block_size: int | None = 256, norm: str = "max") -> Channel:
    """Rounds every entry at random to -1, 0 or 1 times its block's norm (TernGrad).

        C(x)_i = ||x_b||_p sign(x_i) Bernoulli(|x_i| / ||x_b||_p)

    Unbiased; E ||C(x) - x||^2 is exactly the sum over blocks of ||x_b||_1 ||x_b||_p -
    ||x_b||^2. That is at most omega ||x||^2 with omega = 1 / alpha_p - 1, where
    alpha_max = 2 / (1 + sqrt(d)) and alpha_l2 = 1 / sqrt(d) for blocks of d. Bits: five
    entries a byte (1.6 an entry; log2 3 = 1.585) plus 32 a block.

    Args:
      block_size: entries that share a norm; None for the whole message.
      norm: "max" (p = infinity, the best in the paper) or "l2".

    Returns:
      A channel without state.

    Raises:
      ValueError: an argument is out of its bounds.

    References:
      Mishchenko et al., DIANA, 2019, arXiv 1901.09269, definition 1; Wen et al.,
      TernGrad, 2017, arXiv 1705.07878.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.ternary()
      >>> tree = {"w": jnp.array([2.0, -2.0, 0.0])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [2.0, -2.0, 0.0]
      >>> channel.bits(payload)
      40
    """
    block_size = checked_block(block_size)
    return _stochastic(
        "ternary",
        (block_size, norm),
        levels=1,
        symbols=3,
        norm=norm,
        bucket_size=block_size,
    )


def _stochastic(
    name: str,
    setting: tuple,
    *,
    levels: int,
    symbols: int,
    norm: str,
    bucket_size: int | None,
) -> Channel:
    """A channel with `levels` levels on each side of zero."""
    checks.choice("norm", norm, ("l2", "max"))

    def encode(x, live, key):
        width = min(bucket_size or x.shape[0], x.shape[0])
        codes, scales = stochastic_quantize_buckets(
            x, key, levels, norm=norm, bucket_size=width
        )
        codes = (codes + levels).astype(jnp.uint8)
        return (), (pack(codes, symbols, live), cut(scales, live, width))

    def decode(values, side, n):
        codes = side[0].unpack().astype(jnp.int32) - levels
        width = min(bucket_size or n, n)
        return codes * jnp.repeat(whole(side[1]), width)[:n]

    law = Unbiased(of_blocks(partial(_omega, levels, norm), bucket_size))
    return vector_channel(name, setting, encode, decode, law=law)


def _omega(levels: int, norm: str, d: int) -> float:
    """The variance of a bucket of d entries, at most.

    With the max norm the worst message has one large entry and d - 1 small ones alike.
    """
    s = levels
    if norm == "max":
        return (math.sqrt(1 + (d - 1) / s**2) - 1) / 2
    if s == 1:
        return math.sqrt(d) - 1
    return min(d / s**2, math.sqrt(d) / s)
