"""Masks that are not top-k: random ones that a seed decides, by threshold, by block."""

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import count, whole
from fedjax_fm.kernels.random_bits import random_bits, uniform
from fedjax_fm.kernels.scaling import power_of_two
from fedjax_fm.kernels.selection import magnitude_keys, top_k_cut, top_k_mask
from fedjax_fm.kernels.threshold_search import selected


def random_k_mask(key: jax.Array, n: int, k: jax.Array | int) -> jax.Array:
    """Marks min(k, n) of n entries, every set of that size as likely.

    Up to the 2**-31 of a tie. The entries with the largest random words; no sort.
    Scaled by n / k the kept values are unbiased, with omega = n / k - 1.

    Args:
      key: a threefry key, consumed: all that the receiver needs.
      n: entries.
      k: how many, int or i32[]; may be traced.

    Returns:
      bool[n].
    """
    count("k", k)
    words = random_bits(key, n) >> 1
    cut = top_k_cut((words,), k)
    return selected(words, cut.key, cut.last[0])


def bernoulli_mask(key: jax.Array, p: jax.Array | float, n: int) -> jax.Array:
    """Marks entry i with probability p, or p[i], independently of the others.

    Equal to jax.random.bernoulli(key, p, (n,)).

    Args:
      key: a threefry key, consumed.
      p: f32[] or f32[n] in [0, 1], exact to 2**-23; may be traced. Values outside act
        as 0 and 1, NaN as 0.
      n: entries.

    Returns:
      bool[n].

    Raises:
      ValueError: `p` has another shape.
    """
    if jnp.shape(p) not in ((), (n,)):
        raise ValueError(f"expected p of shape () or ({n},), got {jnp.shape(p)}")
    return uniform(key, n) < jnp.asarray(p, jnp.float32)


def threshold_mask(x: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Marks |x| >= threshold, bool[n].

    Denormals are compared too. NaN counts as 0, so it is marked by a threshold of 0
    only.

    Args:
      x: f32[n].
      threshold: f32[] or f32[n]; its sign is ignored, NaN counts as 0.
    """
    return magnitude_keys(x) >= magnitude_keys(threshold)


def block_mask(x: jax.Array, k: jax.Array | int, block_size: int) -> jax.Array:
    """Marks the k blocks of `block_size` entries in a row with the largest mean square.

    Args:
      x: f32[n]; the last block may be shorter.
      k: blocks to keep, int or i32[]; may be traced.
      block_size: entries of a block.

    Returns:
      bool[n]; ties go to the first block. A block with an infinity ranks first, one
      with a NaN last.
    """
    whole("block_size", block_size, least=1)
    n = x.shape[0]
    x = jnp.asarray(x, jnp.float32)
    largest = jnp.max(jnp.abs(x), where=jnp.isfinite(x), initial=0.0)
    x = x * power_of_two(largest)  # the squares of finite entries are finite
    blocks = jnp.pad(x, (0, -n % block_size)).reshape(-1, block_size)
    sizes = jnp.minimum(n - jnp.arange(blocks.shape[0]) * block_size, block_size)
    squares = jnp.sum(jnp.square(blocks), axis=1)
    kept = top_k_mask(squares / sizes, k)
    return jnp.repeat(kept, block_size)[:n]
