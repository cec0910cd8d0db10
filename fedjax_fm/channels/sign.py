"""One bit an entry: signs and a mean magnitude."""

from fedjax_fm.channels.arguments import checked_block
from fedjax_fm.channels.buffers import cut, pack, whole
from fedjax_fm.channels.laws import Contractive, of_blocks
from fedjax_fm.channels.vectors import blocks_of, live_per_block, vector_channel
from fedjax_fm.kernels import sign_decode, sign_encode
from fedjax_fm.types import Channel


def sign(block_size: int | None = None) -> Channel:
    """Sends the signs, and the mean magnitude of each block.

    Contractive, exactly: ||C(x) - x||^2 = (1 - delta) ||x||^2 with delta = ||x||_1^2 /
    (d ||x||^2) in a block of d, 1 / d at worst. Biased: use `error_feedback`. A zero
    arrives as plus or minus the mean of its block. Bits: 1 an entry plus 32 a block.

    Args:
      block_size: entries that share a scale; None for the whole message.

    Returns:
      A channel without state.

    Raises:
      ValueError: `block_size` is below 1.

    References:
      Bernstein et al., signSGD, 2018, arXiv 1802.04434; Karimireddy et al. 2019, arXiv
      1901.09847, section 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.sign()
      >>> tree = {"w": jnp.array([1.0, -3.0])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [2.0, -2.0]
      >>> channel.bits(payload)
      40
    """
    block_size = checked_block(block_size)

    def encode(x, live, key):
        blocks = blocks_of(x, block_size)
        n, width = x.shape[0], blocks.shape[1]
        minus, scales = sign_encode(blocks, live_per_block(n, width, live))
        flags = minus.reshape(-1)[:n]
        return (), (pack(flags, 2, live), cut(scales, live, width))

    def decode(values, side, n):
        minus = blocks_of(side[0].unpack(), block_size) == 1
        scales = whole(side[1])
        return sign_decode(minus, scales).reshape(-1)[:n]

    law = Contractive(of_blocks(lambda d: 1 / d, block_size))
    return vector_channel("sign", block_size, encode, decode, nearest=True, law=law)
