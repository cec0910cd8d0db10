"""Random-k sparsification: a seed tells the positions."""

import jax
import jax.numpy as jnp

from fedjax_fm.channels.top_k import checked_fraction, kept
from fedjax_fm.channels.vectors import poisoned, vector_channel
from fedjax_fm.kernels import kth_largest_key, random_bits
from fedjax_fm.types import Channel


def random_k(fraction: float, scaled: bool = True) -> Channel:
    """Keeps k = ceil(fraction * n) entries drawn uniformly over all leaves together.

    Scaled by n / k it is unbiased with omega = n / k - 1, with equality: E||C(x) - x||^2 = omega ||x||^2. Unscaled it
    is contractive in the mean with delta = k / n. Bits: 32 k for the values (fewer in a `chain`) and 32 for the seed;
    no position travels. A NaN makes all that is sent NaN.

    Args:
      fraction: share of the entries that is sent, 0 < fraction <= 1.
      scaled: multiply what arrives by n / k; leave it out under `error_feedback`.

    References:
      Stich et al., Sparsified SGD with memory, 2018, arXiv 1809.07599.
    """

    def encode(x, live, key):
        seed = jax.random.bits(key)
        places = random_places(seed, x.shape[0], kept(fraction, x.shape[0]))
        return poisoned(x[places], x), (seed,)

    def decode(values, side, n):
        k = kept(fraction, n)
        values = values * jnp.float32(n / k) if scaled else values
        return jnp.zeros(n, jnp.float32).at[random_places(side[0], n, k)].set(values)

    return vector_channel("random_k", (checked_fraction(fraction), scaled), encode, decode, rows=False)


def random_places(seed: jax.Array, n: int, k: int) -> jax.Array:
    """k of n places, each set equally likely but for ties of 31-bit words: u32[] -> i32[k], ascending."""
    words = random_bits(jnp.stack([jnp.uint32(0), seed]), n) >> 1
    threshold = kth_largest_key(words, k)
    above, ties = words > threshold, words == threshold
    left = k - jnp.sum(above, dtype=jnp.int32)
    mask = above | (ties & (jnp.cumsum(ties, dtype=jnp.int32) <= left))
    return jnp.nonzero(mask, size=k)[0].astype(jnp.int32)
