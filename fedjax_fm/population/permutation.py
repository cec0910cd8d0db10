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
        hashed = _mix(
            _mix(right ^ words[0])
            + words[1]
            + jnp.uint32(0x9E3779B9 * (i + 1) & 0xFFFFFFFF)
        )
        # Reduced before the sum: a wrap at 2**32 would not be a bijection modulo `side`.
        left, right = right, (left + hashed % side) % side
    return left * side + right


def _by_feistel(key: jax.Array, n: jax.Array, positions: jax.Array) -> jax.Array:
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)[:2]
    n = jnp.maximum(n, 1).astype(jnp.uint32)
    root = jnp.sqrt(n.astype(jnp.float32)).astype(jnp.uint32)
    side = root + jnp.where(root * root < n, 1, 0).astype(jnp.uint32)
    side = side + jnp.where(side * side < n, 1, 0).astype(
        jnp.uint32
    )  # the float root may be one short
    value = _feistel(words, side, positions.astype(jnp.uint32))
    # Cycle walking: follow the orbit until it is back below n, at most a few steps as
    # side**2 is close to n.
    return jax.lax.while_loop(
        lambda v: jnp.any(v >= n),
        lambda v: jnp.where(v >= n, _feistel(words, side, v), v),
        value,
    ).astype(jnp.int32)


def _by_sort(key: jax.Array, n: jax.Array, positions: jax.Array) -> jax.Array:
    noise = jax.random.bits(key, (SORT_LIMIT,), jnp.uint32) >> 1
    order = jnp.argsort(
        jnp.where(jnp.arange(SORT_LIMIT) < n, noise, jnp.uint32(0xFFFFFFFF))
    )
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
    return jnp.where(
        n <= SORT_LIMIT, _by_sort(key, n, jnp.minimum(positions, SORT_LIMIT - 1)), large
    )
