"""A whole uplink in one piece: error feedback, top-k and rounding of what is kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.kernels.arguments import whole
from fedjax_fm.kernels.compaction import mask_indices
from fedjax_fm.kernels.quantize import stochastic_quantize_buckets
from fedjax_fm.kernels.selection import top_k_mask

_IN_ORDER: dict[str, Any] = {
    "unique_indices": True,
    "indices_are_sorted": True,
    "mode": "promise_in_bounds",
}


class SparseCodes(NamedTuple):
    """Kept entries in index order, rounded in buckets of `bucket_size` of them.

    Attributes:
      places: i32[k], ascending.
      codes: i8[k], in [-levels, levels].
      scales: f32[ceil(k / bucket_size)].
    """

    places: jax.Array
    codes: jax.Array
    scales: jax.Array


def sparse_codes(
    x: jax.Array,
    k: int,
    bits: int,
    key: jax.Array,
    norm: str = "max",
    bucket_size: int = 512,
) -> SparseCodes:
    """Selects min(k, n) entries and rounds them to 2**bits - 1 symbols.

    The r-th of them is rounded by noise number r of the key.

    Args:
      x: f32[n].
      k: int, static: it is the length of what is sent.
      bits: 2 to 8; levels = 2**(bits - 1) - 1.
      key: a threefry key, consumed.
      norm: of a bucket, "max" or "l2".
      bucket_size: kept entries that share a scale.
    """
    whole("k", k, least=0)
    whole("bits", bits, least=2, most=8)
    mask = top_k_mask(x, k)
    places = mask_indices(mask, min(k, x.shape[0]))
    levels = 2 ** (bits - 1) - 1
    codes, scales = stochastic_quantize_buckets(
        x[places], key, levels, norm=norm, bucket_size=bucket_size
    )
    return SparseCodes(places, codes, scales)


def sparse_decode(sent: SparseCodes, n: int, bucket_size: int = 512) -> jax.Array:
    """f32[n]: codes * scale at the places, zero elsewhere.

    Args:
      sent: what `sparse_codes` returned.
      n: length of the vector.
      bucket_size: as for `sparse_codes`.
    """
    scales = jnp.repeat(sent.scales, bucket_size)[: sent.codes.shape[0]]
    values = sent.codes.astype(jnp.float32) * scales
    # The places are in order and differ; told so, the scatter need not look.
    return jnp.zeros(n, jnp.float32).at[sent.places].set(values, **_IN_ORDER)


def sparse_quantize(
    x: jax.Array,
    residual: jax.Array,
    k: int,
    bits: int,
    key: jax.Array,
    norm: str = "max",
    bucket_size: int = 512,
) -> tuple[jax.Array, jax.Array]:
    """What the server decodes, C(x + e), and what the sender keeps, (x + e) - C(x + e).

    Bit for bit the message that is selected, gathered in index order, rounded bucket by
    bucket, and scattered back: there is no faster way, because the list of the k places
    costs less than the selection.

    Args:
      x: f32[n], the update.
      residual: f32[n], e, what earlier rounds left.
      k: int, entries to keep; static.
      bits: width of a code, 2 to 8.
      key: a threefry key, consumed.
      norm: of a bucket, "max" or "l2".
      bucket_size: kept entries that share a scale.

    Returns:
      (decoded f32[n], residual f32[n]). A kept entry that is not finite makes every
      value of its bucket not finite.

    References:
      Seide et al., 1-bit SGD, 2014; Stich et al., Sparsified SGD with memory, 2018,
      arXiv 1809.07599, algorithm 1.
    """
    corrected = x + residual
    sent = sparse_codes(corrected, k, bits, key, norm=norm, bucket_size=bucket_size)
    decoded = sparse_decode(sent, x.shape[0], bucket_size)
    # The difference at the k places only: elsewhere the residual is the corrected
    # update itself, left in place. Read from what was decoded, not from code * scale,
    # which XLA would join with the difference into one rounding.
    rest = corrected[sent.places] - decoded[sent.places]
    return decoded, corrected.at[sent.places].set(rest, **_IN_ORDER)
