"""Which form of a kernel to run, by the platform and the shapes known while tracing.

Every form gives the same bits, so a program that is then compiled for another platform
is slower, not wrong.
"""

import jax

_LONGEST_RESIDENT_ROW = 2**20  # f32 entries: 4 MB of a TPU core's VMEM

# `with compiled_for("tpu"):` says for what machines the programs that are traced inside
# are, where these are not JAX's default; JAX traces anew for another value.
compiled_for = jax.make_user_context(None)


def platform() -> str:
    """For what machines programs are traced now: "cpu", "gpu" or "tpu"."""
    return compiled_for.value or jax.default_backend()


def on_cpu() -> bool:
    """Whether programs traced now are for CPUs."""
    return platform() == "cpu"


def row_stays_in_kernel(n: int) -> bool:
    """Whether the Pallas kernel that holds a vector is used: on TPU, if it fits.

    Args:
      n: entries of the vector.
    """
    return platform() == "tpu" and n <= _LONGEST_RESIDENT_ROW
