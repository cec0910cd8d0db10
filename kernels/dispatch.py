"""Which form of a kernel to run, from what is known when it is traced: the backend and the shapes."""

import jax


def on_cpu() -> bool:
    """Whether programs traced now run on CPU by default.

    Every form gives the same bits, so a program that is then compiled for another backend is slower, not wrong.
    """
    return jax.default_backend() == "cpu"
