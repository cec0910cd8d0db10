"""Hard threshold: what is large enough is sent, however many entries that is."""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.channels.arguments import checked_real
from fedjax_fm.channels.buffers import pack_counted_places
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
    rms = jnp.sqrt(jnp.sum(jnp.square(scaled)) / jnp.maximum(n_live, 1))
    return scaled >= jnp.float32(least) * rms


def threshold(least: float, relative_to: str | None = None) -> Channel:
    """Keeps the entries of magnitude at least `least`, or at least `least` times the
    largest or the root mean square.

    Error of an entry below the threshold t: ||C(x) - x||^2 <= n t^2, and contractive
    with delta >= 1 / n when relative to "max" with least <= 1 (the largest entry is
    exact). Biased: use `error_feedback`. Bits, which the data decide: 32 for the number
    k of kept entries, 32 k for their values (fewer in a `chain`), and k ceil(log2 n) or
    n bits for the positions, the shorter form; `bits` is a u32[]. The buffers have room
    for all n, the worst case. A NaN makes all that is sent NaN.

    Args:
      least: the threshold, positive.
      relative_to: None, "max" or "rms" (then C(c x) = c C(x)).

    References:
      Strom 2015; Sahu et al., Rethinking gradient sparsification, 2021, arXiv
      2108.00951, definition 4.
    """
    least = checked_real("least", least, above=0)
    checks.choice("relative_to", relative_to, RELATIVE)

    def encode(x, live, key):
        n = x.shape[0]
        # Zeros are never worth sending; a NaN sends one entry at least, which then says so.
        bad = jnp.any(jnp.isnan(x))
        reaches = _reaches(x, least, relative_to, n if live is None else live)
        mask = jnp.where(bad, jnp.arange(n) == 0, reaches & (x != 0))
        positions = pack_counted_places(mask)
        slots = jnp.where(mask, jnp.cumsum(mask) - 1, n)
        values = (
            jnp.zeros(n, jnp.float32)
            .at[slots]
            .set(jnp.where(bad, jnp.nan, x), mode="drop")
        )
        return Rows(values, positions.count.astype(jnp.int32)), (positions,)

    def decode(values, side, n):
        mask = side[0].unpack()
        return jnp.where(mask, values.values[jnp.maximum(jnp.cumsum(mask) - 1, 0)], 0.0)

    return vector_channel("threshold", (least, relative_to), encode, decode)
