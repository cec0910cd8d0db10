"""Natural compression: powers of two."""

from fedjax_fm.channels.buffers import pack
from fedjax_fm.channels.vectors import vector_channel
from fedjax_fm.kernels import natural_decode, natural_encode
from fedjax_fm.types import Channel


def natural() -> Channel:
    """Rounds every entry to one of the two powers of two beside it, without bias.

    Sign and exponent travel.

    Unbiased with omega = 1/8; variance exactly sum 4^e f(1 - f) for entries 2^e (1 +
    f). No scale, no block. Bits: 9 an entry, 8 for the exponent and 1 for the sign.
    Magnitudes above 2^127 may become infinity.

    References:
      Horvath et al., Natural compression, 2019, arXiv 1905.10988, theorem 1.
    """

    def encode(x, live, key):
        codes = natural_encode(
            x, key
        )  # signs and exponents apart: a byte and a bit pack faster than nine bits
        return (), (pack(codes & 0xFF, 256, live), pack(codes >> 8, 2, live))

    def decode(values, side, n):
        return natural_decode((side[1].unpack() << 8) | side[0].unpack())

    return vector_channel("natural", (), encode, decode)
