"""Which form of a kernel to run, by the backend and the shapes known while tracing.

Every form gives the same bits, so a program that is then compiled for another backend
is slower, not wrong.
"""

import jax

_LONGEST_RESIDENT_ROW = 2**20  # f32 entries: 4 MB of a TPU core's VMEM


def on_cpu() -> bool:
    """Whether programs traced now run on CPU by default."""
    return jax.default_backend() == "cpu"


def row_stays_in_kernel(n: int) -> bool:
    """Whether the Pallas kernel that holds a vector is used: on TPU, if it fits.

    Args:
      n: entries of the vector.
    """
    return jax.default_backend() == "tpu" and n <= _LONGEST_RESIDENT_ROW
