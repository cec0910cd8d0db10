"""Natural compression: powers of two."""

from fedjax_fm.channels.buffers import pack
from fedjax_fm.channels.laws import Unbiased, constant
from fedjax_fm.channels.vectors import vector_channel
from fedjax_fm.kernels import natural_decode, natural_encode
from fedjax_fm.types import Channel


def natural() -> Channel:
    """Rounds every entry at random to one of the two powers of two beside it.

        E ||C(x) - x||^2 = sum_i 4^e_i f_i (1 - f_i),  |x_i| = 2^e_i (1 + f_i)

    Unbiased with omega = 1/8; sign and exponent travel, no scale and no block. Bits: 9
    an entry, 8 for the exponent and 1 for the sign. Magnitudes above 2^127 may become
    infinity.

    Returns:
      A channel without state.

    References:
      Horvath et al., Natural compression, 2019, arXiv 1905.10988, theorem 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.natural()
      >>> tree = {"w": jnp.array([1.0, -0.25, 3.0])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()  # powers of two are exact
      [1.0, -0.25, 2.0]
      >>> channel.bits(payload)
      32
    """

    def encode(x, live, key):
        codes = natural_encode(x, key)
        # Apart, since a byte and a bit pack faster than nine bits.
        exponents, signs = codes & 0xFF, codes >> 8
        return (), (pack(exponents, 256, live), pack(signs, 2, live))

    def decode(values, side, n):
        signs, exponents = side[1].unpack(), side[0].unpack()
        return natural_decode((signs << 8) | exponents)

    law = Unbiased(constant(1 / 8))
    return vector_channel("natural", (), encode, decode, law=law)
