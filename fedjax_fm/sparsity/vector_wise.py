"""N:M sparsity: of every M entries in a row, N stay.

Zhu, Zhang, Gu, Xie, 2019, Sparse Tensor Core, MICRO-52. A group of M entries travels as N
values and where they were: the number of their pattern among the C(M, N) possible ones.

Masked, not faster, here: no sparse product is called.
"""

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.kernels import pack_bits, unpack_bits

MOST_PATTERNS = 2**16


def _static():
    """A field of a dataclass that is part of the tree's structure, not a leaf."""
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """An array of N:M sparsity.

    Attributes:
      values: [N, groups], in the order of their places; the groups last, so that devices
        with tiled memory pad next to nothing.
      patterns: u8[...], ceil(log2 C(M, N)) bits for each group.
      shape: of the array.
      axis: along which it was cut into groups.
      n: N.
      m: M.
    """

    values: jax.Array
    patterns: jax.Array
    shape: tuple[int, ...] = _static()
    axis: int = _static()
    n: int = _static()
    m: int = _static()


def vector_wise_mask(x: jax.Array, n: int, m: int, axis: int = -1) -> jax.Array:
    """Keeps the n largest magnitudes of every m entries in a row.

    Of all such patterns the nearest to x, with at least n / m of its energy. Ties go to
    the first entry.

    Args:
      x: floats.
      n: N, 1 <= n <= m; 2 of 4 is what hardware has.
      m: M, a divisor of the axis, at most 32.
      axis: along which groups lie; that of the sum in a product x @ y is the last of x.

    Returns:
      bool of x's shape, n of every m True.

    Raises:
      TypeError, ValueError: numbers out of their bounds, or a group that does not divide
        the axis.

    References:
      Zhu et al. 2019, Sparse Tensor Core, MICRO-52.

    Example:
      >>> vector_wise_mask(jnp.array([1.0, -4.0, 3.0, 2.0]), 2, 4).tolist()
      [False, True, True, False]
    """
    groups, back = _groups(x, n, m, axis)
    size = jnp.abs(groups)
    # Rank by counting: entries that are larger, or as large and further ahead.
    ahead = jnp.arange(m)[:, None] < jnp.arange(m)[None]
    larger = size[..., :, None] > size[..., None, :]
    equal = size[..., :, None] == size[..., None, :]
    rank = jnp.sum(larger | (equal & ahead), axis=-2)
    return back(rank < n)


def pack_vector_wise(x: jax.Array, n: int, m: int, axis: int = -1) -> Packed:
    """An array of which every m entries in a row have n that are kept, packed.

    Takes n (b + ceil(log2 C(m, n)) / n) / m bits an entry of b bits: 8.75 for 2 of 4 in
    16 bits, where places of two bits each would take 9.

    Args:
      x: floats; what `vector_wise_mask` leaves out is dropped.
      n: N.
      m: M.
      axis: along which groups lie.

    Returns:
      What travels.

    Raises:
      TypeError, ValueError: as `vector_wise_mask`; more than 2**16 patterns.
    """
    mask = vector_wise_mask(x, n, m, axis)
    groups, _ = _groups(x, n, m, axis)
    flags, _ = _groups(mask, n, m, axis)
    flags, groups = flags.reshape(-1, m), groups.reshape(-1, m)
    # By comparisons alone: accelerators are slow to compile and to run sorts of rows.
    before = jnp.cumsum(flags, axis=1)
    is_nth = [flags & (before == i + 1) for i in range(n)]  # the kept ones, ascending
    values = jnp.stack([_only(here, groups) for here in is_nth])
    # The number of a pattern in the combinatorial number system: sum_i C(place_i, i).
    choose = [[math.comb(place, i + 1) for place in range(m)] for i in range(n)]
    steps = [
        _only(*pair) for pair in zip(is_nth, np.array(choose, np.uint32), strict=True)
    ]
    number = functools.reduce(jnp.add, steps)
    patterns = pack_bits(number, pattern_bits(n, m))
    return Packed(
        values=values,
        patterns=patterns,
        shape=x.shape,
        axis=axis,
        n=n,
        m=m,
    )


def unpack_vector_wise(packed: Packed) -> jax.Array:
    """The inverse of `pack_vector_wise`, zeros where nothing was kept.

    Args:
      packed: what travelled.
    """
    n, m = packed.n, packed.m
    number = unpack_bits(packed.patterns, pattern_bits(n, m), packed.values.shape[1])
    places = jnp.asarray(_patterns(n, m))[:, number]  # [N, groups]

    def column(place):
        return jnp.sum(jnp.where(places == place, packed.values, 0), axis=0)

    rows = jnp.stack([column(place) for place in range(m)], axis=1)
    rows = rows.astype(packed.values.dtype)
    moved = list(packed.shape)
    moved.append(moved.pop(packed.axis))
    return jnp.moveaxis(rows.reshape(moved), -1, packed.axis)


def _only(here: jax.Array, x: Any) -> jax.Array:
    """Of each row the one entry that a flag is set for, [rows]."""
    return jnp.sum(jnp.where(here, x, 0), axis=1).astype(x.dtype)


def pattern_bits(n: int, m: int) -> int:
    """Bits of a group's pattern: ceil(log2 C(m, n)), and 1 where there is but one.

    Args:
      n: N.
      m: M.

    Example:
      >>> pattern_bits(2, 4)
      3
    """
    return max(1, (math.comb(m, n) - 1).bit_length())


@functools.lru_cache(maxsize=16)
def _patterns(n: int, m: int) -> np.ndarray:
    """i32[n, C(m, n)]: the places of each pattern, in the order of their numbers."""
    places = itertools.combinations(range(m), n)
    return np.array(sorted(places, key=lambda c: c[::-1]), np.int32).T


def _groups(x: jax.Array, n: Any, m: Any, axis: int) -> tuple[jax.Array, Any]:
    """The array as [..., groups, m], and what undoes it."""
    checks.whole("m", m, least=1, most=32)
    checks.whole("n", n, least=1, most=m)
    if math.comb(m, n) > MOST_PATTERNS:
        raise ValueError(
            f"n={n} of m={m} have {math.comb(m, n)} patterns, expected at most "
            f"{MOST_PATTERNS}; take smaller groups"
        )
    if x.shape[axis] % m:
        raise ValueError(
            f"groups of m={m} do not divide axis {axis} of shape {list(x.shape)}; give "
            f"a divisor of {x.shape[axis]}"
        )
    moved = jnp.moveaxis(x, axis, -1)

    def back(groups):
        return jnp.moveaxis(groups.reshape(moved.shape), -1, axis)

    return moved.reshape(*moved.shape[:-1], -1, m), back
