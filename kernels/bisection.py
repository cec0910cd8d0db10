"""The cut of one vector by bisection: 31 counts for the key, 31 for the last tie.

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
    """Which of fewer than 2**24 entries to select, see `threshold_search.Cut`.

    Args:
      keys: i32[...], not negative; padding is -1.
      index: i32[...], the place of each.
      k: i32[], how many to select.

    Returns:
      (key i32[], the largest that k keys reach, 0 for k > n; last i32[], the place of
      the last tie that is selected, -1 for none).
    """

    def count(flags):
        return jnp.sum(flags.astype(jnp.float32))

    wanted = k.astype(jnp.float32)

    def raise_key(i, key):
        candidate = key | (jnp.int32(1) << (30 - i))
        is_reached = count(keys >= candidate) >= wanted
        return jnp.where(is_reached, candidate, key)

    key = lax.fori_loop(0, 31, raise_key, jnp.int32(0))
    n_open = wanted - count(keys > key)
    ties = keys == key

    def raise_last(i, until):
        # The largest number of first places with at most n_open ties among them.
        candidate = until | (jnp.int32(1) << (30 - i))
        fits = count(ties & (index < candidate)) <= n_open
        return jnp.where(fits, candidate, until)

    last = lax.fori_loop(0, 31, raise_last, jnp.int32(0)) - 1
    return key, jnp.where(k > 0, last, -1)
