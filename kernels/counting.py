"""Magnitudes as integers that keep their order, and counts of the large ones."""

import jax
import jax.numpy as jnp
from jax import lax

LARGEST_KEY = 2**31 - 1  # above the key of infinity, which is 0x7f800000
N_THRESHOLDS = 4
_LANES = 32


def magnitude_keys(x: jax.Array) -> jax.Array:
    """Integers that are ordered as |x| is, u32[...] below 2**31.

    NaN counts as 0, so it is selected last. Denormals keep their order too, although
    XLA's float comparisons on CPU take them for zero.

    Args:
      x: f32[...] (other floats are cast).
    """
    words = lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.uint32)
    bits = words & jnp.uint32(LARGEST_KEY)
    is_nan = bits > jnp.uint32(0x7F800000)
    return jnp.where(is_nan, jnp.uint32(0), bits)


def keys_of(leaf: jax.Array) -> jax.Array:
    """Keys of a leaf: u32 are keys already, floats give those of their magnitudes.

    Args:
      leaf: floats or u32.
    """
    return leaf if leaf.dtype == jnp.uint32 else magnitude_keys(leaf)


def count_at_least(leaf: jax.Array, thresholds: jax.Array) -> jax.Array:
    """How many keys are at least as large as each of four thresholds, i32[4].

    One read of the data: four counters share a word, 8 bits each over 32 entries, 16
    bits each over 2**11 words. Reductions that are this short stay one fused loop on
    CPU; one long reduction first writes its whole operand.

    Args:
      leaf: f[n] or u32[n].
      thresholds: u32[4], all positive.
    """
    n = leaf.shape[0]
    whole = n // _LANES * _LANES
    keys = keys_of(leaf[:whole].reshape(-1, _LANES))
    words = _count_rows(keys, thresholds)
    if whole < n:  # a padding key is 0, below every threshold
        rest = jnp.pad(keys_of(leaf[whole:]), (0, _LANES - n + whole))
        words = jnp.concatenate([words, _count_rows(rest[None], thresholds)])
    words = jnp.pad(words, (0, -words.shape[0] % _LANES)).reshape(-1, _LANES)
    # Counters 0 and 2, at most 1024 each, then 1 and 3.
    low = jnp.sum(words & jnp.uint32(0x00FF00FF), axis=1, dtype=jnp.uint32)
    high = jnp.sum((words >> 8) & jnp.uint32(0x00FF00FF), axis=1, dtype=jnp.uint32)
    halves = [
        low & jnp.uint32(0xFFFF),
        high & jnp.uint32(0xFFFF),
        low >> 16,
        high >> 16,
    ]
    counts = [jnp.sum(half, dtype=jnp.uint32) for half in halves]
    return jnp.stack(counts).astype(jnp.int32)


def _count_rows(keys: jax.Array, thresholds: jax.Array) -> jax.Array:
    """u32[r, 32] -> u32[r]: four counters of 8 bits."""
    flags = [
        (keys >= thresholds[j]).astype(jnp.uint32) << (8 * j)
        for j in range(N_THRESHOLDS)
    ]
    return jnp.sum(flags[0] + flags[1] + flags[2] + flags[3], axis=1, dtype=jnp.uint32)
