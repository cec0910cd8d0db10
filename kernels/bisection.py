"""The cut of one vector by bisection, bit by bit: 31 counts for the key and 31 for the last tie.

The slowest form where the data lie in memory, the simplest inside a kernel that holds
them in registers or VMEM. No scatter, no sort and no integer sums, which TPU kernels do
not have.
"""

import jax
import jax.numpy as jnp
from jax import lax


def bisect_cut(
    keys: jax.Array, index: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which of fewer than 2**24 entries to select: see `threshold_search.Cut`.

    Args:
      keys: i32[...], not negative; padding is -1.
      index: i32[...], the place of each.
      k: i32[].

    Returns:
      (key i32[], the largest that k keys reach, 0 for k > n; last i32[], the place of
      the last tie that is selected, -1 for none).
    """

    def count(flags):
        return jnp.sum(flags.astype(jnp.float32))

    wanted = k.astype(jnp.float32)

    def raise_key(i, key):
        candidate = key | (jnp.int32(1) << (30 - i))
        return jnp.where(count(keys >= candidate) >= wanted, candidate, key)

    key = lax.fori_loop(0, 31, raise_key, jnp.int32(0))
    n_open = wanted - count(keys > key)
    ties = keys == key

    def raise_last(
        i, until
    ):  # the largest number of first places with at most n_open ties among them
        candidate = until | (jnp.int32(1) << (30 - i))
        return jnp.where(count(ties & (index < candidate)) <= n_open, candidate, until)

    last = lax.fori_loop(0, 31, raise_last, jnp.int32(0)) - 1
    return key, jnp.where(k > 0, last, -1)
