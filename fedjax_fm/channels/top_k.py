"""Top-k sparsification of a whole message."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from fedjax_fm.channels.arguments import checked_fraction
from fedjax_fm.channels.buffers import pack_places
from fedjax_fm.channels.laws import Contractive, constant
from fedjax_fm.channels.vectors import poisoned, vector_channel
from fedjax_fm.kernels import mask_indices, top_k_mask
from fedjax_fm.types import Channel


def top_k(fraction: float) -> Channel:
    """Keeps the k = ceil(fraction * n) entries of largest magnitude of all leaves.

    Contractive with delta = k / n: ||C(x) - x||^2 <= (1 - k / n) ||x||^2. Biased: use
    `error_feedback`. Bits: 32 k for the values (fewer if a later channel of a `chain`
    encodes them) plus the positions, as k numbers of ceil(log2 n) bits or as a bitmap
    of n bits, whichever is shorter. A NaN makes all that is sent NaN.

    Args:
      fraction: share of the entries that is sent, 0 < fraction <= 1.

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
      >>> channel = channels.top_k(0.5)
      >>> tree = {"w": jnp.array([1.0, -4.0, 2.0, 0.5])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [0.0, -4.0, 2.0, 0.0]
      >>> channel.bits(payload)  # two values, a byte of positions
      72
    """
    fraction = checked_fraction(fraction)

    def encode(x, live, key):
        k = kept(fraction, x.shape[0])
        mask = top_k_mask(x, k)
        places = mask_indices(mask, k)
        return poisoned(x[places], x), (pack_places(mask, places),)

    def decode(values, side, n):
        return scattered(values, side[0].unpack(), n)

    law = Contractive(constant(fraction), selects=True)
    return vector_channel("top_k", fraction, encode, decode, rows=False, law=law)


def scattered(values: jax.Array, places: jax.Array, n: int) -> jax.Array:
    """f32[n] with the values at their places, zero elsewhere.

    Args:
      values: f32[k].
      places: i32[k], ascending; those from n on are dropped.
      n: length of the result.
    """
    zeros = jnp.zeros(n, jnp.float32)
    # Told that they are unique, the scatter need not look for places that occur twice.
    return zeros.at[places].set(
        values, unique_indices=True, indices_are_sorted=True, mode="drop"
    )


def kept(fraction: float, n: int) -> int:
    """ceil(fraction * n) of the decimal as written: 0.07 * 100 is above 7 in floats.

    Args:
      fraction: share of the entries.
      n: entries.
    """
    share = Fraction(str(fraction))
    return math.ceil(share * n)
