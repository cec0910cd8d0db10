"""Single values of a random permutation, without making the whole of it.

A cohort of 10 out of a million clients, or one batch of a shuffled client, needs a few
values of a permutation of n. Above `SORT_LIMIT` a keyed Feistel network gives them one
by one; below it a sort is exact and cheap.
"""

import jax
import jax.numpy as jnp

# For small n the Feistel network reaches too few of the n! orders.
SORT_LIMIT = 64
_ROUNDS = 8


def _mix(x: jax.Array) -> jax.Array:
    """The 32-bit finaliser of MurmurHash3.

    Every input bit flips each output bit with probability near one half.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _feistel(words: jax.Array, side: jax.Array, value: jax.Array) -> jax.Array:
    """A bijection of [0, side**2), keyed by words u32[2]."""
    left, right = value // side, value % side
    for i in range(_ROUNDS):
        of_round = jnp.uint32(0x9E3779B9 * (i + 1) & 0xFFFFFFFF)
        hashed = _mix(_mix(right ^ words[0]) + words[1] + of_round)
        # Reduced before the sum: with a wrap at 2**32 it would be no bijection.
        left, right = right, (left + hashed % side) % side
    return left * side + right


def _by_feistel(key: jax.Array, n: jax.Array, positions: jax.Array) -> jax.Array:
    """Values of a permutation of n by a Feistel network, for large n."""
    words = jax.random.key_data(key).astype(jnp.uint32)
    words = words.reshape(-1)[:2]
    n = jnp.maximum(n, 1).astype(jnp.uint32)
    root = jnp.sqrt(n.astype(jnp.float32))
    root = root.astype(jnp.uint32)
    side = root + jnp.where(root * root < n, 1, 0).astype(jnp.uint32)
    # The float root may be one short.
    side = side + jnp.where(side * side < n, 1, 0).astype(jnp.uint32)
    value = _feistel(words, side, positions.astype(jnp.uint32))

    def is_outside(v):
        return jnp.any(v >= n)

    def step(v):
        return jnp.where(v >= n, _feistel(words, side, v), v)

    # Cycle walking: follow the orbit until it is back below n, at most a few steps as
    # side**2 is close to n.
    return jax.lax.while_loop(is_outside, step, value).astype(jnp.int32)


def _by_sort(key: jax.Array, n: jax.Array, positions: jax.Array) -> jax.Array:
    """Values of a permutation of n <= SORT_LIMIT by sorting random words."""
    noise = jax.random.bits(key, (SORT_LIMIT,), jnp.uint32) >> 1
    is_below = jnp.arange(SORT_LIMIT) < n
    words = jnp.where(is_below, noise, jnp.uint32(0xFFFFFFFF))  # the others come last
    order = jnp.argsort(words)
    return order[positions].astype(jnp.int32)


def permuted(
    key: jax.Array, n: jax.Array, positions: jax.Array, n_max: int
) -> jax.Array:
    """Where a random permutation of range(n) sends `positions`.

    Args:
      key: names the permutation; the same key and n always give the same one.
      n: i32[], may be traced; at least 1 for a meaningful result.
      positions: i32[...], each in [0, n).
      n_max: static upper bound of n, which decides the code that is compiled.

    Returns:
      i32[...] in [0, n), distinct for distinct positions.
    """
    if n_max <= SORT_LIMIT:
        return _by_sort(key, n, positions)
    large = _by_feistel(key, n, positions)
    small = _by_sort(key, n, jnp.minimum(positions, SORT_LIMIT - 1))
    return jnp.where(n <= SORT_LIMIT, small, large)
