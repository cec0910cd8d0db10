"""Pallas forms of kernels for accelerators, equal bit for bit to the plain ones.

Run so far in interpret mode on CPU only, by the tests. `cut_of_rows` is compiled ahead
of time for chips of a TPU v5e inside of whole rounds (`tests/aot`), never run there;
`stochastic_quantize_blocks` is not compiled for an accelerator by any test.
"""

from fedjax_fm.kernels.pallas.quantize import stochastic_quantize_blocks
from fedjax_fm.kernels.pallas.threshold import cut_of_rows

__all__ = ["cut_of_rows", "stochastic_quantize_blocks"]
