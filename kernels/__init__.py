"""Array kernels: arrays in, arrays out; nothing but jax is imported here.

Installed as `fedjax_fm.kernels`; the top-level name `kernels` belongs to another project.
"""

if __name__ != "fedjax_fm.kernels":
    raise ImportError(f"import this package as fedjax_fm.kernels, not as {__name__!r}: two copies would not be equal")

from .packing import pack_bits, packed_length, unpack_bits
from .quantize import stochastic_quantize
from .random_bits import random_bits, random_bits_at, uniform
from .selection import kth_largest_key, top_k_mask

__all__ = [
    "kth_largest_key",
    "pack_bits",
    "packed_length",
    "random_bits",
    "random_bits_at",
    "stochastic_quantize",
    "top_k_mask",
    "uniform",
    "unpack_bits",
]
