"""Pallas forms of kernels for accelerators, equal bit for bit to the plain ones.

Run so far in interpret mode on CPU only, by the tests; never yet compiled for a TPU or
a GPU.
"""

from fedjax_fm.kernels.pallas.quantize import stochastic_quantize_blocks
from fedjax_fm.kernels.pallas.threshold import cut_of_rows

__all__ = ["cut_of_rows", "stochastic_quantize_blocks"]
