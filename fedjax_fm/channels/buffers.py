"""Buffers that say what they hold: codes, positions.

A receiver unpacks them; a study measures their entropy.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.kernels import (
    mask_indices,
    pack_bits,
    pack_symbols,
    packed_length,
    unpack_bits,
    unpack_symbols,
)
from fedjax_fm.types import Rows, Unbilled


def static():
    return dataclasses.field(metadata={"static": True})


def is_bool(x: Any) -> bool:
    """Whether an array, or the shape of one, holds flags."""
    return x.dtype == jnp.bool_


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Codes:
    """n packed symbols, of which the first `live` travel when data decide how many there are.

    Attributes:
      packed: u8[...], or `Rows` of the bytes that travel.
      n: symbols in the buffer.
      symbols: size of the alphabet, 3 or a power of two.
      live: () when all n travel, else Unbilled(i32[]): the receiver knows it from another
        part of the message.
    """

    packed: Any
    n: int = static()
    symbols: int = static()
    live: Any = ()

    @property
    def bits(self) -> int:
        """Width of one code."""
        return (self.symbols - 1).bit_length()

    def unpack(self) -> jax.Array:
        """Unsigned codes, [n]; zero past the live ones."""
        packed = self.packed.values if isinstance(self.packed, Rows) else self.packed
        return (
            unpack_symbols(packed, 3, self.n)
            if self.symbols == 3
            else unpack_bits(packed, self.bits, self.n)
        )


def pack(codes: jax.Array, symbols: int, live: jax.Array | None = None) -> Codes:
    """Packs unsigned codes below `symbols`; with `live`, i32[], only so many travel."""
    n, bits = codes.shape[0], (symbols - 1).bit_length()
    if live is not None:
        codes = jnp.where(jnp.arange(n) < live, codes, 0)
    if symbols == 3:
        packed = pack_symbols(codes, 3)
    else:  # a byte each needs no arithmetic: the same bytes
        packed = (
            codes.astype(jnp.uint8)
            if bits == 8
            else pack_bits(codes.astype(jnp.uint32), bits)
        )
    if live is None:
        return Codes(packed, n, symbols)
    n_bytes = (
        -(-live // 5) if symbols == 3 else live // 8 * bits + -(-(live % 8) * bits // 8)
    )
    return Codes(Rows(packed, n_bytes.astype(jnp.int32)), n, symbols, Unbilled(live))


def cut(array: jax.Array, live: jax.Array | None, per: int = 1) -> Any:
    """The first ceil(live / per) rows of an array as `Rows`, the others zeroed.

    The array itself without `live`.
    """
    if live is None:
        return array
    count = -(-live // per)
    keep = jnp.arange(array.shape[0]) < count
    return Rows(
        jnp.where(
            keep.reshape(-1, *[1] * (array.ndim - 1)), array, jnp.zeros_like(array)
        ),
        count,
    )


def whole(buffer: Any) -> jax.Array:
    """The array of what `cut` returned."""
    return buffer.values if isinstance(buffer, Rows) else buffer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Which k of n entries were chosen, as k numbers of ceil(log2 n) bits or as a
    bitmap, whichever is shorter.
    """

    packed: jax.Array  # u8[...]
    n: int = static()
    k: int = static()

    @property
    def by_index(self) -> bool:
        """Numbers rather than a bitmap."""
        return index_bits(self.n) * self.k < self.n

    def unpack(self) -> jax.Array:
        """i32[k], ascending."""
        if self.by_index:
            return unpack_bits(self.packed, index_bits(self.n), self.k).astype(
                jnp.int32
            )
        return mask_indices(unpack_bits(self.packed, 1, self.n) == 1, self.k)


def pack_places(mask: jax.Array, places: jax.Array) -> Places:
    """A mask bool[n] and the places of its k marks, in order."""
    n, k = mask.shape[0], places.shape[0]
    by_index = index_bits(n) * k < n
    return Places(
        pack_bits(places.astype(jnp.uint32), index_bits(n))
        if by_index
        else pack_bits(mask, 1),
        n,
        k,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CountedPlaces:
    """Like `Places` for a count that the data decide.

    It travels, 32 bits, and says which of the two forms does.
    """

    index: Rows  # bytes of the packed numbers; none when the bitmap is shorter
    bitmap: Rows  # bytes of the bitmap; none when the numbers are shorter
    count: jax.Array  # u32[]
    n: int = static()

    @property
    def room(self) -> int:
        """The most places that are ever sent as numbers."""
        return -(-self.n // index_bits(self.n))

    def unpack(self) -> jax.Array:
        """bool[n]: the chosen places."""
        n, width = self.n, index_bits(self.n)
        numbers = unpack_bits(self.index.values, width, self.room).astype(jnp.int32)
        numbers = jnp.where(
            jnp.arange(self.room) < self.count.astype(jnp.int32), numbers, n
        )
        by_index = jnp.zeros(n, bool).at[numbers].set(True, mode="drop")
        by_bitmap = unpack_bits(self.bitmap.values, 1, n) == 1
        return jnp.where(self.count * jnp.uint32(width) < n, by_index, by_bitmap)


def pack_counted_places(mask: jax.Array) -> CountedPlaces:
    """A mask bool[n] in the shorter of the two forms."""
    n, width = mask.shape[0], index_bits(mask.shape[0])
    room = -(-n // width)
    count = jnp.sum(mask, dtype=jnp.uint32)
    short = count * jnp.uint32(width) < n
    chosen = mask_indices(mask, room)
    numbers = pack_bits(
        jnp.where(short & (chosen < n), chosen, 0).astype(jnp.uint32), width
    )
    n_bytes = (count * jnp.uint32(width) + 7) // 8
    bitmap = jnp.where(short, 0, pack_bits(mask, 1)).astype(jnp.uint8)
    return CountedPlaces(
        Rows(numbers, jnp.where(short, n_bytes, 0).astype(jnp.int32)),
        Rows(bitmap, jnp.where(short, 0, packed_length(n, 1)).astype(jnp.int32)),
        count,
        n,
    )


def index_bits(n: int) -> int:
    """Bits of one position among n."""
    return max(1, (n - 1).bit_length())
