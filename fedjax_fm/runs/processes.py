"""Which of several processes writes what all of them know."""

import sys


def is_first() -> bool:
    """Whether this process writes files and shows progress: process 0, or the only one.

    JAX is not imported for this: without it there is one process.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return True
    return jax.process_index() == 0
