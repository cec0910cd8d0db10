"""Top-k sparsification of a whole message."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from fedjax_fm.channels.arguments import checked_fraction
from fedjax_fm.channels.buffers import pack_places
from fedjax_fm.channels.vectors import poisoned, vector_channel
from fedjax_fm.kernels import mask_indices, top_k_mask
from fedjax_fm.types import Channel


def top_k(fraction: float) -> Channel:
    """Keeps the k = ceil(fraction * n) entries of largest magnitude over all leaves together.

    Contractive with delta = k / n (METHODS: ||C(x) - x||^2 <= (1 - k/n) ||x||^2);
    biased, so use `error_feedback`. Bits: 32 k for the values (fewer if a later stage
    of a `chain` encodes them) plus the positions, as k numbers of ceil(log2 n) bits or
    as a bitmap of n bits, whichever is shorter. A NaN makes all that is sent NaN.

    Args:
      fraction: share of the entries that is sent, 0 < fraction <= 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> channel = top_k(0.5)
      >>> tree = {"w": jnp.array([1.0, -4.0, 2.0, 0.5])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [0.0, -4.0, 2.0, 0.0]
    """
    fraction = checked_fraction(fraction)

    def encode(x, live, key):
        k = kept(fraction, x.shape[0])
        mask = top_k_mask(x, k)
        places = mask_indices(mask, k)
        return poisoned(x[places], x), (pack_places(mask, places),)

    def decode(values, side, n):
        return scattered(values, side[0].unpack(), n)

    return vector_channel("top_k", fraction, encode, decode, rows=False)


def scattered(values: jax.Array, places: jax.Array, n: int) -> jax.Array:
    """f32[n] with values at places that ascend, zero elsewhere; places from n on are dropped."""
    # Said so, the scatter need not look for places that occur twice.
    return (
        jnp.zeros(n, jnp.float32)
        .at[places]
        .set(values, unique_indices=True, indices_are_sorted=True, mode="drop")
    )


def kept(fraction: float, n: int) -> int:
    """ceil(fraction * n) of the decimal as it is written: 0.07 * 100 is above 7 in floats."""
    return math.ceil(Fraction(str(fraction)) * n)
