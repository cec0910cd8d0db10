"""Where to cut: the threshold that k of n magnitudes reach, found by counting.

A pass counts the keys above four thresholds in one read. A strided sample gives the
first four, around the wanted rank; between the best two, interpolation on the counts
gives the next four. For continuous data four passes are usual, where bisection needs
31. A pass that did not halve the open interval is followed by one that cuts it into
quarters and asks whether all that is left are ties of its lowest key, so that no data
takes more than 64 passes.

lax.top_k on CPU is a heap over indices, 4 to 20 times slower from 1e5 entries on, and
it becomes a sort of everything when only part of its result is used, or for any other
type than f32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_fm.kernels.counting import (
    LARGEST_KEY,
    N_THRESHOLDS,
    count_at_least,
    keys_of,
)
from fedjax_fm.kernels.dispatch import on_cpu, row_stays_in_kernel

# Entries of the largest sample; its bisection costs about a tenth of a millisecond.
_SAMPLE = 16384
# Thresholds of the first pass, in standard deviations of the sample's rank, and of the
# later ones, in those of a bridge between the two known counts.
_FIRST = (3.0, 0.5, -0.5, -3.0)
_NEXT = (-1.5, -0.4, 0.4, 1.5)
_TIE_BLOCK = 1024


class Cut(NamedTuple):
    """Which entries are selected: keys above `key`, and the first of those equal to it.

    `key` need not occur among the keys: every threshold that exactly k keys reach
    serves.

    Attributes:
      key: u32[].
      last: i32[] for each leaf; of the entries equal to `key`, those up to this index.
    """

    key: jax.Array
    last: tuple[jax.Array, ...]


def selected(leaf: jax.Array, key: jax.Array, last: jax.Array) -> jax.Array:
    """The mask of a cut in one leaf, bool[n].

    Args:
      leaf: floats or u32 keys, [n].
      key: u32[], of the cut.
      last: i32[], of the cut in this leaf.
    """
    keys = keys_of(leaf)
    index = lax.iota(jnp.int32, leaf.shape[0])
    return (keys > key) | ((keys == key) & (index <= last))


@jax.custom_batching.custom_vmap
def find_cut(leaves: tuple[jax.Array, ...], k: jax.Array) -> Cut:
    """The cut that selects min(k, n) of the n entries of all leaves together.

    Ties go to the first, in order of leaves. Under `vmap` on CPU the rows are searched
    one after another, each while it is in the cache and for as many passes as it needs;
    elsewhere all at once. On TPU a vector that fits is held by a Pallas kernel.

    Args:
      leaves: vectors of floats (by magnitude) or u32 keys below 2**31; n < 2**31 in
        all.
      k: i32[], how many to select.
    """
    n = sum(leaf.shape[0] for leaf in leaves)
    if len(leaves) == 1 and row_stays_in_kernel(n):
        # Only here: Pallas takes a while to import.
        from fedjax_fm.kernels.pallas.threshold import cut_of_rows

        keys, most = keys_of(leaves[0])[None], jnp.minimum(k, n)[None]
        key, last = cut_of_rows(keys, most, interpret=on_cpu())
        return Cut(key[0], (last[0],))
    wanted = jnp.clip(k, 1, n)
    interval = _search(leaves, wanted, _first_thresholds(leaves, wanted, n))
    lasts = lax.cond(
        interval.at_low == wanted,
        lambda: tuple(jnp.full((), leaf.shape[0], jnp.int32) for leaf in leaves),
        lambda: _last_ties(leaves, interval.low, wanted - interval.at_high),
    )
    nothing = k < 1
    key = jnp.where(nothing, jnp.uint32(LARGEST_KEY), interval.low)
    lasts = [jnp.where(nothing, -1, last) for last in lasts]
    return Cut(key, tuple(lasts))


@find_cut.def_vmap
def _rows(
    axis_size: int, batched: tuple, leaves: tuple[jax.Array, ...], k: jax.Array
) -> tuple[Cut, Cut]:
    """`find_cut` under `vmap`."""
    leaves_batched, k_batched = batched
    out = Cut(True, (True,) * len(leaves))  # type: ignore[arg-type]
    if not on_cpu():
        axes = tuple(0 if is_batched else None for is_batched in leaves_batched)
        in_axes = (axes, 0 if k_batched else None)
        at_once = jax.vmap(find_cut.fun, in_axes=in_axes, axis_size=axis_size)
        return at_once(leaves, k), out

    def one(i):
        pairs = zip(leaves, leaves_batched, strict=True)
        row = tuple(leaf[i] if is_batched else leaf for leaf, is_batched in pairs)
        return find_cut(row, k[i] if k_batched else k)

    return lax.map(one, jnp.arange(axis_size)), out


class _Interval(NamedTuple):
    """The search so far; k keys reach `low`, and fewer than k reach `high`."""

    low: jax.Array  # u32[]
    high: jax.Array  # u32[]
    at_low: jax.Array  # i32[], keys >= low; at least k
    at_high: jax.Array  # i32[], keys >= high; fewer than k
    thresholds: jax.Array  # u32[4], of the next pass


def _search(
    leaves: Sequence[jax.Array], k: jax.Array, thresholds: jax.Array
) -> _Interval:
    """Counts until k keys reach `low`, or until low and low + 1 have k between them."""

    def is_open(interval):
        return (interval.high - interval.low > 1) & (interval.at_low != k)

    def count(interval):
        # Tied to what changes, or XLA hoists the keys out of the loop and writes them.
        here, thresholds = lax.optimization_barrier(
            (tuple(leaves), interval.thresholds)
        )
        counts = sum(count_at_least(leaf, thresholds) for leaf in here)
        reached = counts >= k
        low = jnp.max(jnp.where(reached, thresholds, interval.low))
        high = jnp.min(jnp.where(reached, interval.high, thresholds))
        at_low = jnp.min(jnp.where(reached, counts, interval.at_low))
        at_high = jnp.max(jnp.where(reached, interval.at_high, counts))
        halved = 2 * (at_low - at_high) <= interval.at_low - interval.at_high
        found = interval._replace(low=low, high=high, at_low=at_low, at_high=at_high)
        return found._replace(thresholds=_next_thresholds(found, k, halved))

    n = sum(leaf.shape[0] for leaf in leaves)
    low, high = jnp.uint32(0), jnp.uint32(LARGEST_KEY)
    start = _Interval(
        low=low,
        high=high,
        at_low=jnp.int32(n),
        at_high=jnp.int32(0),
        thresholds=_ascending(thresholds, low, high),
    )
    return lax.while_loop(is_open, count, start)


def _next_thresholds(
    interval: _Interval, k: jax.Array, interpolate: jax.Array
) -> jax.Array:
    """Four thresholds between low and high, around the interpolated one.

    Without `interpolate` low + 1 and three quarters.
    """
    low, high, at_low, at_high, _ = interval
    width = (high - low).astype(jnp.float32)
    inside = (at_low - at_high).astype(jnp.float32)
    # Keys to leave below the threshold.
    above_low = (at_low - k).astype(jnp.float32) + 0.5
    deviation = jnp.sqrt(above_low * (1 - above_low / inside))
    ranks = above_low + jnp.array(_NEXT, jnp.float32) * jnp.maximum(deviation, 0.6)
    interpolated = jnp.clip(ranks / inside, 0, 1) * width
    quarters = jnp.array([0.0, 0.25, 0.5, 0.75], jnp.float32) * width
    steps = jnp.where(interpolate, interpolated, quarters)
    return _ascending(low + steps.astype(jnp.uint32), low, high)


def _ascending(thresholds: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Moves thresholds into (low, high), each above the last while there is room."""
    inside = []
    for j in range(N_THRESHOLDS):
        low = jnp.clip(thresholds[j], low + 1, jnp.maximum(high - 1, low + 1))
        inside.append(low)
    return jnp.stack(inside)


def _first_thresholds(leaves: Sequence[jax.Array], k: jax.Array, n: int) -> jax.Array:
    """Keys of a sample at four ranks around k's share of it."""
    size = min(_SAMPLE, max(2048, n // 64))
    stride = max(1, n // size) | 1  # odd, against rows of even length
    sample = jnp.concatenate([keys_of(leaf[::stride]) for leaf in leaves])
    m = sample.shape[0]
    rank = k.astype(jnp.float32) * (m / n)
    deviation = jnp.sqrt(rank * jnp.maximum(1 - rank / m, 0)) + 1
    around = rank + jnp.array(_FIRST, jnp.float32) * deviation
    ranks = jnp.round(around).astype(jnp.int32)

    def set_bit(i, keys):
        place = jnp.uint32(30) - i.astype(jnp.uint32)
        candidates = keys | (jnp.uint32(1) << place)
        are_reached = count_at_least(sample, candidates) >= ranks
        return jnp.where(are_reached, candidates, keys)

    keys = lax.fori_loop(0, 31, set_bit, jnp.zeros(N_THRESHOLDS, jnp.uint32))
    return jnp.where(ranks < 1, jnp.uint32(LARGEST_KEY), keys)


def _last_ties(
    leaves: Sequence[jax.Array], key: jax.Array, n_open: jax.Array
) -> tuple[jax.Array, ...]:
    """For each leaf the index of the last tie that is selected; -1 for none.

    `n_open` >= 1 entries equal to `key` are selected in all.
    """
    lasts = []
    for leaf in leaves:
        last, n_ties = _last_tie(leaf, key, n_open)
        lasts.append(jnp.where(n_open > 0, last, -1))
        n_open = n_open - n_ties
    return tuple(lasts)


def _last_tie(
    leaf: jax.Array, key: jax.Array, n_open: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(index of the n_open-th tie, or the length if there are fewer; number of ties)."""
    n = leaf.shape[0]
    n_blocks = -(-n // _TIE_BLOCK)
    whole = n // _TIE_BLOCK * _TIE_BLOCK
    keys = keys_of(leaf[:whole].reshape(-1, 32))
    ties = (keys == key).astype(jnp.uint32)
    per_row = jnp.sum(ties, axis=1, dtype=jnp.uint32)
    per_row = per_row.reshape(-1, _TIE_BLOCK // 32)
    per_block = jnp.sum(per_row, axis=1, dtype=jnp.uint32)
    rest = leaf[whole:]
    if rest.shape[0]:
        in_rest = jnp.sum(keys_of(rest) == key, dtype=jnp.uint32)
        per_block = jnp.concatenate([per_block, in_rest[None]])
    until = jnp.cumsum(per_block.astype(jnp.int32))
    block = jnp.minimum(jnp.sum(until < n_open, dtype=jnp.int32), n_blocks - 1)
    width = min(_TIE_BLOCK, n)
    # The last block is cut back to a whole width.
    start = jnp.minimum(block * _TIE_BLOCK, n - width)
    within = keys_of(lax.dynamic_slice(leaf, (start,), (width,))) == key
    inside = start + lax.iota(jnp.int32, width) >= block * _TIE_BLOCK
    before = until[block] - per_block[block].astype(jnp.int32)
    so_far = jnp.cumsum(within & inside, dtype=jnp.int32)
    passed = jnp.sum(so_far < n_open - before, dtype=jnp.int32)
    return jnp.where(until[-1] < n_open, n, start + passed), until[-1]
