"""Hard threshold: all large entries are sent, however many they are."""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.channels.arguments import checked_real
from fedjax_fm.channels.buffers import pack_counted_places
from fedjax_fm.channels.laws import Contractive
from fedjax_fm.channels.vectors import vector_channel
from fedjax_fm.kernels.scaling import largest_magnitude, power_of_two
from fedjax_fm.types import Channel, Rows

RELATIVE = (None, "max", "rms")


def _reaches(
    x: jax.Array, least: float, relative_to: str | None, n_live: jax.Array | int
) -> jax.Array:
    """bool[n]: |x| >= the threshold."""
    magnitude = jnp.abs(x)
    if relative_to is None:
        return magnitude >= jnp.float32(least)
    largest = largest_magnitude(x)
    if relative_to == "max":
        return magnitude >= jnp.float32(least) * largest
    # Of tiny or huge numbers the squares would all be zero, or their sum infinite:
    # nothing would reach it.
    scaled = magnitude * power_of_two(largest)
    total = jnp.sum(jnp.square(scaled))
    rms = jnp.sqrt(total / jnp.maximum(n_live, 1))
    return scaled >= jnp.float32(least) * rms


def threshold(least: float, relative_to: str | None = None) -> Channel:
    """Keeps the entries of magnitude at least t, however many these are.

        t = least,  least max_j |x_j|  or  least sqrt(sum_j x_j^2 / n)

    ||C(x) - x||^2 <= n t^2. Contractive with delta >= 1 / n when relative to "max" with
    least <= 1, since the largest entry is exact. Biased: use `error_feedback`. A NaN
    makes all that is sent NaN.

    Bits: 32 for the number k of kept entries, 32 k for their values (fewer in a
    `chain`), and k ceil(log2 n) or n bits for the positions, the shorter form; `bits`
    gives a u32[]. The buffers have room for all n entries, the worst case.

    Args:
      least: the threshold, or its share of the largest entry or the root mean square;
        positive.
      relative_to: None, "max" or "rms"; with the last two C(c x) = c C(x).

    Returns:
      A channel without state.

    Raises:
      ValueError: `least` is not positive, or another `relative_to`.

    References:
      Strom 2015; Sahu et al., Rethinking gradient sparsification, 2021, arXiv
      2108.00951, definition 4.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.threshold(0.5, relative_to="max")
      >>> tree = {"w": jnp.array([1.0, -4.0, 2.0, 0.5])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [0.0, -4.0, 2.0, 0.0]
      >>> int(channel.bits(payload))  # a count, two values, a byte of positions
      104
    """
    least = checked_real("least", least, above=0)
    checks.choice("relative_to", relative_to, RELATIVE)

    def encode(x, live, key):
        n = x.shape[0]
        # Zeros are never worth sending. With a NaN, entry 0 is sent, as NaN.
        bad = jnp.any(jnp.isnan(x))
        reaches = _reaches(x, least, relative_to, n if live is None else live)
        mask = jnp.where(bad, jnp.arange(n) == 0, reaches & (x != 0))
        positions = pack_counted_places(mask)
        slots = jnp.where(mask, jnp.cumsum(mask) - 1, n)
        empty, sent = jnp.zeros(n, jnp.float32), jnp.where(bad, jnp.nan, x)
        values = empty.at[slots].set(sent, mode="drop")
        return Rows(values, positions.count.astype(jnp.int32)), (positions,)

    def decode(values, side, n):
        mask = side[0].unpack()
        slots = jnp.maximum(jnp.cumsum(mask) - 1, 0)
        return jnp.where(mask, values.values[slots], 0.0)

    law, setting = _law(least, relative_to), (least, relative_to)
    return vector_channel("threshold", setting, encode, decode, law=law)


def _law(least: float, relative_to: str | None) -> Contractive | None:
    """The largest entry is always sent; what is not is below the threshold."""
    if relative_to is None or least > 1:
        return None
    if relative_to == "max":
        return Contractive(lambda n: 1 / n, selects=True)
    return Contractive(lambda n: max(1 - least**2, 1 / n), selects=True)
