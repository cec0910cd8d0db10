"""Random-k sparsification: a seed tells the positions."""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.channels.arguments import checked_fraction
from fedjax_fm.channels.top_k import kept, scattered
from fedjax_fm.channels.vectors import poisoned, vector_channel
from fedjax_fm.kernels import mask_indices, random_k_mask
from fedjax_fm.types import Channel


def random_k(fraction: float, scaled: bool = True) -> Channel:
    """Keeps k = ceil(fraction * n) entries drawn uniformly over all leaves together.

    Scaled by n / k it is unbiased with omega = n / k - 1, with equality: E||C(x) -
    x||^2 = omega ||x||^2. Unscaled it is contractive in the mean with delta = k / n.
    Bits: 32 k for the values (fewer in a `chain`) and 32 for the seed; no position
    travels. A NaN makes all that is sent NaN.

    Args:
      fraction: share of the entries that is sent, 0 < fraction <= 1.
      scaled: multiply what arrives by n / k; leave it out under `error_feedback`.

    References:
      Stich et al., Sparsified SGD with memory, 2018, arXiv 1809.07599.
    """
    fraction = checked_fraction(fraction)
    scaled = checks.flag("scaled", scaled)

    def encode(x, live, key):
        seed = jax.random.bits(key)
        places = random_places(seed, x.shape[0], kept(fraction, x.shape[0]))
        return poisoned(x[places], x), (seed,)

    def decode(values, side, n):
        k = kept(fraction, n)
        values = values * jnp.float32(n / k) if scaled else values
        return scattered(values, random_places(side[0], n, k), n)

    return vector_channel("random_k", (fraction, scaled), encode, decode, rows=False)


def random_places(seed: jax.Array, n: int, k: int) -> jax.Array:
    """K of n places, every set as likely but for ties of 31-bit words.

    U32[] -> i32[k], ascending.
    """
    return mask_indices(random_k_mask(jnp.stack([jnp.uint32(0), seed]), n, k), k)
