"""Hard threshold: what is large enough is sent, however many entries that is."""

import jax.numpy as jnp

from fedjax_fm.channels.buffers import pack_counted_places
from fedjax_fm.channels.vectors import vector_channel
from fedjax_fm.types import Channel, Rows

RELATIVE = {
    None: lambda x, live: jnp.float32(1),
    "max": lambda x, live: jnp.max(jnp.abs(x)),
    "rms": lambda x, live: jnp.sqrt(jnp.sum(jnp.square(x)) / jnp.maximum(live, 1)),
}


def threshold(least: float, relative_to: str | None = None) -> Channel:
    """Keeps the entries of magnitude at least `least`, or at least `least` times the largest or the root mean square.

    Error of an entry below the threshold t: ||C(x) - x||^2 <= n t^2, and contractive with
    delta >= 1 / n when relative to "max" with least <= 1 (the largest entry is exact). Biased: use `error_feedback`.
    Bits, which the data decide: 32 for the number k of kept entries, 32 k for their values (fewer in a `chain`),
    and k ceil(log2 n) or n bits for the positions, the shorter form; `bits` is a u32[]. The buffers have room for
    all n, the worst case. A NaN makes all that is sent NaN.

    Args:
      least: the threshold, positive.
      relative_to: None, "max" or "rms" (then C(c x) = c C(x)).

    References:
      Strom 2015; Sahu et al., Rethinking gradient sparsification, 2021, arXiv 2108.00951, definition 4.
    """
    if not 0 < least < float("inf"):
        raise ValueError(f"expected a positive threshold, got least={least}")
    if relative_to not in RELATIVE:
        raise ValueError(f"expected relative_to None, 'max' or 'rms', got {relative_to!r}")

    def encode(x, live, key):
        n = x.shape[0]
        at = jnp.float32(least) * RELATIVE[relative_to](x, n if live is None else live)
        # Zeros are never worth sending; a NaN sends one entry at least, which then says so.
        bad = jnp.any(jnp.isnan(x))
        mask = jnp.where(bad, jnp.arange(n) == 0, (jnp.abs(x) >= at) & (x != 0))
        positions = pack_counted_places(mask)
        slots = jnp.where(mask, jnp.cumsum(mask) - 1, n)
        values = jnp.zeros(n, jnp.float32).at[slots].set(jnp.where(bad, jnp.nan, x), mode="drop")
        return Rows(values, positions.count.astype(jnp.int32)), (positions,)

    def decode(values, side, n):
        mask = side[0].unpack()
        return jnp.where(mask, values.values[jnp.maximum(jnp.cumsum(mask) - 1, 0)], 0.0)

    return vector_channel("threshold", (least, relative_to), encode, decode)
