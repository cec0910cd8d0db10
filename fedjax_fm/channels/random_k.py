"""Random-k sparsification: a seed tells the positions."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.channels.arguments import checked_fraction
from fedjax_fm.channels.laws import Contractive, Unbiased, constant
from fedjax_fm.channels.top_k import kept, scattered
from fedjax_fm.channels.vectors import poisoned, vector_channel
from fedjax_fm.kernels import mask_indices, random_k_mask
from fedjax_fm.types import Channel


def random_k(fraction: float, scaled: bool = True) -> Channel:
    """Keeps k = ceil(fraction * n) entries, drawn uniformly over all leaves together.

    Scaled by n / k it is unbiased, with equality in E ||C(x) - x||^2 = omega ||x||^2,
    omega = n / k - 1. Unscaled it is contractive in the mean with delta = k / n. Bits:
    32 k for the values (fewer in a `chain`) and 32 for the seed; no position travels. A
    NaN makes all that is sent NaN.

    Args:
      fraction: share of the entries that is sent, 0 < fraction <= 1.
      scaled: whether what arrives is multiplied by n / k; False under `error_feedback`.

    Returns:
      A channel without state.

    Raises:
      ValueError: `fraction` is out of its bounds.
      TypeError: at the first message, `Rows` among the leaves.

    References:
      Stich et al., Sparsified SGD with memory, 2018, arXiv 1809.07599.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.random_k(0.5)
      >>> tree = {"w": jnp.array([1.0, 2.0, 3.0, 4.0])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()  # two entries, twice as large
      [0.0, 4.0, 0.0, 8.0]
      >>> channel.bits(payload)
      96
    """
    fraction = checked_fraction(fraction)
    scaled = checks.flag("scaled", scaled)

    def encode(x, live, key):
        seed, n = jax.random.bits(key), x.shape[0]
        places = random_places(seed, n, kept(fraction, n))
        return poisoned(x[places], x), (seed,)

    def decode(values, side, n):
        k = kept(fraction, n)
        values = values * jnp.float32(n / k) if scaled else values
        places = random_places(side[0], n, k)
        return scattered(values, places, n)

    law: Any = Contractive(constant(fraction), selects=True)
    if scaled:
        law = Unbiased(constant(1 / fraction - 1))
    setting = (fraction, scaled)
    return vector_channel("random_k", setting, encode, decode, rows=False, law=law)


def random_places(seed: jax.Array, n: int, k: int) -> jax.Array:
    """i32[k], ascending: k of n places, drawn uniformly but for ties of 31-bit words.

    Args:
      seed: u32[], the same seed gives the same places.
      n: places to choose from.
      k: places to choose.
    """
    words = jnp.stack([jnp.uint32(0), seed])
    return mask_indices(random_k_mask(words, n, k), k)
