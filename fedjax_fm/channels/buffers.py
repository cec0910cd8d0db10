"""Buffers of a payload with what is needed to read them: codes and positions.

A receiver unpacks them, and `code_lengths` measures their entropy.
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
    """A field of a dataclass that is part of the tree's structure, not a leaf."""
    return dataclasses.field(metadata={"static": True})


def is_bool(x: Any) -> bool:
    """Whether an array, or the shape of one, holds flags.

    Args:
      x: anything with a dtype.
    """
    return x.dtype == jnp.bool_


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Codes:
    """Packed symbols, of which a number that depends on the data may travel.

    Attributes:
      packed: u8[...], or `Rows` of the bytes that travel.
      n: symbols in the buffer.
      symbols: size of the alphabet, 3 or a power of two.
      live: () when all n travel, else Unbilled(i32[]), how many do; they are the first
        ones, and the receiver has their number from another part of the message.
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
        packed = whole(self.packed)
        if self.symbols == 3:
            return unpack_symbols(packed, 3, self.n)
        return unpack_bits(packed, self.bits, self.n)


def pack(codes: jax.Array, symbols: int, live: jax.Array | None = None) -> Codes:
    """Packs unsigned codes.

    Args:
      codes: unsigned integers [n], below `symbols`.
      symbols: size of the alphabet, 3 or a power of two up to 256.
      live: i32[], how many of them travel; None for all.

    Returns:
      `Codes` whose bytes are 5 symbols a byte for 3 symbols, else log2(symbols) bits
      each.
    """
    n, bits = codes.shape[0], (symbols - 1).bit_length()
    if live is not None:
        codes = jnp.where(jnp.arange(n) < live, codes, 0)
    if symbols == 3:
        packed = pack_symbols(codes, 3)
    elif bits == 8:  # the bytes that `pack_bits` would give, without arithmetic
        packed = codes.astype(jnp.uint8)
    else:
        packed = pack_bits(codes.astype(jnp.uint32), bits)
    if live is None:
        return Codes(packed, n, symbols)
    if symbols == 3:
        n_bytes = -(-live // 5)
    else:  # whole groups of 8 codes, then the rest: live * bits might overflow
        n_bytes = live // 8 * bits + -(-(live % 8) * bits // 8)
    sent = Rows(packed, n_bytes.astype(jnp.int32))
    return Codes(sent, n, symbols, Unbilled(live))


def cut(array: jax.Array, live: jax.Array | None, per: int = 1) -> Any:
    """The first ceil(live / per) rows of an array as `Rows`, the others zero.

    Args:
      array: [rows, ...].
      live: i32[], how many entries travel; None for all, which gives the array itself.
      per: entries that a row belongs to, for example the size of a block.
    """
    if live is None:
        return array
    count = -(-live // per)
    keep = jnp.arange(array.shape[0]) < count
    keep = keep.reshape(-1, *[1] * (array.ndim - 1))
    return Rows(jnp.where(keep, array, jnp.zeros_like(array)), count)


def whole(buffer: Any) -> jax.Array:
    """The array of what `cut` returned.

    Args:
      buffer: an array, or `Rows`.
    """
    return buffer.values if isinstance(buffer, Rows) else buffer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Which k of n entries were chosen, in the shorter of two forms.

    k numbers of ceil(log2 n) bits, or a bitmap of n bits.

    Attributes:
      packed: u8[...], the numbers or the bitmap.
      n: entries to choose from.
      k: entries that were chosen.
    """

    packed: jax.Array
    n: int = static()
    k: int = static()

    @property
    def by_index(self) -> bool:
        """Whether they travel as numbers, else as a bitmap."""
        return index_bits(self.n) * self.k < self.n

    def unpack(self) -> jax.Array:
        """i32[k], ascending."""
        if self.by_index:
            width = index_bits(self.n)
            return unpack_bits(self.packed, width, self.k).astype(jnp.int32)
        mask = unpack_bits(self.packed, 1, self.n) == 1
        return mask_indices(mask, self.k)


def pack_places(mask: jax.Array, places: jax.Array) -> Places:
    """The chosen places in the shorter of the two forms.

    Args:
      mask: bool[n], with k marks.
      places: i32[k], where they are, ascending.
    """
    n, k = mask.shape[0], places.shape[0]
    width = index_bits(n)
    if width * k < n:
        packed = pack_bits(places.astype(jnp.uint32), width)
    else:
        packed = pack_bits(mask, 1)
    return Places(packed, n=n, k=k)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CountedPlaces:
    """Like `Places`, for a count that depends on the data.

    The count travels, in 32 bits, and tells which of the two forms does.

    Attributes:
      index: bytes of the packed numbers; none when the bitmap is shorter.
      bitmap: bytes of the bitmap; none when the numbers are shorter.
      count: u32[], places that were chosen.
      n: places to choose from.
    """

    index: Rows
    bitmap: Rows
    count: jax.Array
    n: int = static()

    @property
    def room(self) -> int:
        """The most places that are ever sent as numbers."""
        return -(-self.n // index_bits(self.n))

    def unpack(self) -> jax.Array:
        """bool[n]: which places were chosen."""
        n, width = self.n, index_bits(self.n)
        numbers = unpack_bits(self.index.values, width, self.room).astype(jnp.int32)
        is_sent = jnp.arange(self.room) < self.count.astype(jnp.int32)
        numbers = jnp.where(is_sent, numbers, n)
        by_index = jnp.zeros(n, bool).at[numbers].set(True, mode="drop")
        by_bitmap = unpack_bits(self.bitmap.values, 1, n) == 1
        return jnp.where(self.count * jnp.uint32(width) < n, by_index, by_bitmap)


def pack_counted_places(mask: jax.Array) -> CountedPlaces:
    """The chosen places in the shorter of the two forms, decided by their count.

    Args:
      mask: bool[n], the chosen places.
    """
    n, width = mask.shape[0], index_bits(mask.shape[0])
    room = -(-n // width)
    count = jnp.sum(mask, dtype=jnp.uint32)
    short = count * jnp.uint32(width) < n
    chosen = mask_indices(mask, room)
    chosen = jnp.where(short & (chosen < n), chosen, 0)
    numbers = pack_bits(chosen.astype(jnp.uint32), width)
    n_bytes = (count * jnp.uint32(width) + 7) // 8
    bitmap = jnp.where(short, 0, pack_bits(mask, 1))
    index_bytes = jnp.where(short, n_bytes, 0)
    bitmap_bytes = jnp.where(short, 0, packed_length(n, 1))
    return CountedPlaces(
        index=Rows(numbers, index_bytes.astype(jnp.int32)),
        bitmap=Rows(bitmap.astype(jnp.uint8), bitmap_bytes.astype(jnp.int32)),
        count=count,
        n=n,
    )


def index_bits(n: int) -> int:
    """Bits of one position.

    Args:
      n: positions that there are.
    """
    return max(1, (n - 1).bit_length())
