"""Exact selection of the k largest magnitudes, without a sort; k may be traced.

For floats the bit pattern of |x|, read as an unsigned integer, grows with |x|. A search
by counting finds a threshold that k of these keys reach; a mask follows from one
comparison.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_fm.kernels.arguments import count
from fedjax_fm.kernels.counting import LARGEST_KEY, magnitude_keys
from fedjax_fm.kernels.threshold_search import Cut, find_cut, selected

__all__ = [
    "kth_largest_key",
    "magnitude_keys",
    "top_k_cut",
    "top_k_mask",
    "top_k_masks",
]


# Neighbouring leaves below this are joined: the copy is cheap, a loop for each is slow
# to compile.
_SMALL = 2**16


def top_k_mask(x: jax.Array, k: jax.Array | int) -> jax.Array:
    """Marks the k entries of largest magnitude.

    Infinities are the largest; NaN ranks as zero, so it is marked only when fewer than
    k other entries are left (check for it apart); denormals are ordered among
    themselves. Ties, also between x and -x, go to the lowest index. If fewer than k
    entries are not zero, zeros are marked by the same rule.

    Args:
      x: f32[n] (other floats are cast).
      k: how many, int or i32[]; may be traced; k > n marks everything.

    Returns:
      bool[n] with exactly min(k, n) true.

    Raises:
      ValueError: `x` is no vector of floats.

    Example:
      >>> import jax.numpy as jnp
      >>> top_k_mask(jnp.array([1.0, -3.0, 2.0, 3.0]), 2).tolist()
      [False, True, False, True]
    """
    if x.ndim != 1:
        raise ValueError(
            f"expected a vector, got shape {x.shape}; ravel it or vmap over the "
            "leading axes"
        )
    cut = top_k_cut((x,), k)
    return selected(_comparable(x), cut.key, cut.last[0])


def top_k_masks(tree: Any, k: jax.Array | int) -> Any:
    """Marks the k entries of largest magnitude of all leaves together.

    As `top_k_mask` on the leaves, each in row-major order, one after another, without
    joining the large ones: one threshold from the sum of the leaves' counts. Ties go to
    the first leaf.

    Args:
      tree: leaves f32[...] (other floats are cast).
      k: how many, int or i32[]; may be traced.

    Returns:
      A tree of bool[...], with min(k, entries) true in all.
    """
    leaves, form = jax.tree.flatten(tree)
    groups: list[list[int]] = []
    for i, leaf in enumerate(leaves):
        if groups and leaf.size < _SMALL and leaves[groups[-1][-1]].size < _SMALL:
            groups[-1].append(i)
        else:
            groups.append([i])
    vectors = tuple(_joined([leaves[i] for i in group]) for group in groups)
    cut = top_k_cut(vectors, k)
    masks: list[jax.Array] = []
    for group, vector, last in zip(groups, vectors, cut.last, strict=True):
        mask, start = selected(vector, cut.key, last), 0
        for leaf in (leaves[i] for i in group):
            masks.append(mask[start : start + leaf.size].reshape(leaf.shape))
            start += leaf.size
    return jax.tree.unflatten(form, masks)


def _joined(leaves: list[jax.Array]) -> jax.Array:
    """One vector of neighbouring leaves: one leaf as it is, several copied as f32."""
    vectors = [_comparable(jnp.ravel(leaf)) for leaf in leaves]
    if len(vectors) == 1:
        return vectors[0]
    return jnp.concatenate([vector.astype(jnp.float32) for vector in vectors])


def top_k_cut(vectors: tuple[jax.Array, ...], k: jax.Array | int) -> Cut:
    """The cut that selects min(k, n) of the n entries of these vectors.

    See `top_k_mask` for which, and `threshold_search.Cut` for its form.

    Args:
      vectors: floats, taken by magnitude, or u32 keys below 2**31.
      k: how many, int or i32[]; may be traced.

    Raises:
      ValueError: 2**31 entries or more, or vectors of another type.
    """
    count("k", k)
    n = sum(vector.shape[0] for vector in vectors)
    if n >= 2**31:
        raise ValueError(f"expected fewer than 2**31 entries, got {n}")
    vectors = tuple(_comparable(vector) for vector in vectors)
    lasts = [jnp.int32(-1)] * len(vectors)
    if n == 0:
        return Cut(jnp.uint32(LARGEST_KEY), tuple(lasts))
    filled = [i for i, vector in enumerate(vectors) if vector.shape[0]]
    searched = tuple(vectors[i] for i in filled)
    cut = find_cut(searched, jnp.asarray(k, jnp.int32))
    for i, last in zip(filled, cut.last, strict=True):
        lasts[i] = last
    return Cut(cut.key, tuple(lasts))


def kth_largest_key(keys: jax.Array, k: jax.Array | int) -> jax.Array:
    """The k-th largest of some keys, u32[]; 0 when k > n, 2**31 - 1 when k = 0.

    Args:
      keys: u32[n], below 2**31.
      k: rank from 1, int or i32[]; may be traced.
    """
    n = keys.shape[0]
    cut = top_k_cut((keys,), k)
    key = jnp.min(keys, where=keys >= cut.key, initial=jnp.uint32(LARGEST_KEY))
    too_many = jnp.asarray(k) > n
    return jnp.where(too_many, jnp.uint32(0), key)


def _comparable(vector: jax.Array) -> jax.Array:
    """u32 keys as they are, floats outside differentiation; refuses the rest."""
    if vector.dtype == jnp.uint32:
        return vector
    if not jnp.issubdtype(vector.dtype, jnp.floating):
        raise ValueError(f"expected floats, got {vector.dtype}")
    return lax.stop_gradient(vector)
