"""Compiled programs are dropped before a process runs out of memory maps.

JAX keeps every program that a process has compiled. On CPUs each takes some ten of the
memory maps that Linux allows a process (65,530 by default); when they run out, XLA ends
the process. A study or a notebook of many simulations gets there, with memory to spare.
"""

import gc
from pathlib import Path

import jax

MAPS = Path("/proc/self/maps")
LIMIT = Path("/proc/sys/vm/max_map_count")
MOST = 0.5  # of the limit, that may be in use before the next simulation compiles


def in_use() -> float:
    """The share of the memory maps that this process uses; 0 where nobody can tell.

    Example:
      >>> 0 <= in_use() < 1
      True
    """
    if not (MAPS.exists() and LIMIT.exists()):
        return 0.0
    with MAPS.open("rb") as lines:
        n = sum(1 for _ in lines)
    return n / int(LIMIT.read_bytes())


def make_room() -> bool:
    """Drops JAX's compiled programs if they take more than half of the memory maps.

    What is still needed is compiled again when it is called next.

    Returns:
      Whether programs were dropped.
    """
    if in_use() <= MOST:
        return False
    jax.clear_caches()
    gc.collect()  # programs end with the functions that hold them
    return True
