"""Kept entries on the wire: without those that a mask leaves out, masks as bits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.kernels import mask_indices, pack_bits, unpack_bits
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Rows, Tree


def pack_kept(tree: Tree, masks: Flat) -> Tree:
    """A tree as it travels to someone who holds the masks.

    Of a leaf with a mask the kept entries, in a row: `Rows`, billed by their count. The
    others as they are.

    Args:
      tree: arrays.
      masks: bool by path.

    Returns:
      A tree with `Rows` in the place of the masked leaves.

    Example:
      >>> packed = pack_kept({"w": jnp.arange(4.0)}, {"w": jnp.arange(4) % 2 == 1})
      >>> packed["w"].values.tolist(), int(packed["w"].count)
      ([1.0, 3.0, 0.0, 0.0], 2)
    """

    def one(path, leaf):
        mask = masks.get(trees.path_of(path))
        return leaf if mask is None else _kept(leaf.reshape(-1), mask.reshape(-1))

    return jax.tree.map_with_path(one, tree)


def _kept(entries: jax.Array, mask: jax.Array) -> Rows:
    """The kept entries of a vector, in a row."""
    n = entries.shape[0]
    places = mask_indices(mask, n)
    count = jnp.sum(mask, dtype=jnp.int32)
    kept = jnp.where(jnp.arange(n) < count, entries[jnp.minimum(places, n - 1)], 0)
    return Rows(kept, count)


def unpack_kept(packed: Tree, masks: Flat) -> Tree:
    """The inverse of `pack_kept`, zeros where a mask is False.

    Args:
      packed: of `pack_kept`.
      masks: bool by path, those that it was packed with.

    Returns:
      The tree.
    """

    def one(path, node):
        mask = masks.get(trees.path_of(path))
        return node if mask is None else _spread(node.values, mask)

    def is_rows(node):
        return isinstance(node, Rows)

    return jax.tree.map_with_path(one, packed, is_leaf=is_rows)


def _spread(kept: jax.Array, mask: jax.Array) -> jax.Array:
    """The entries of a row back at their places."""
    flags = mask.reshape(-1)
    place = jnp.cumsum(flags) - 1
    entries = jnp.where(flags, kept[jnp.maximum(place, 0)], 0)
    return entries.reshape(mask.shape)


class PackedMasks(NamedTuple):
    """Masks as bits, all leaves in one string.

    Attributes:
      bits: u8[ceil(entries / 8)].
    """

    bits: jax.Array


def pack_masks(masks: Flat) -> PackedMasks:
    """One bit an entry, all masks in a row by their names, in whole bytes for the message.

    Args:
      masks: bool by path.

    Example:
      >>> masks = {"a": jnp.array([True, False, True]), "b": jnp.array([[True]])}
      >>> pack_masks(masks).bits.tolist()
      [13]
    """
    flags = jnp.concatenate([masks[name].reshape(-1) for name in sorted(masks)])
    return PackedMasks(pack_bits(flags, 1))


def unpack_masks(packed: PackedMasks, like: Flat) -> Flat:
    """The inverse of `pack_masks`.

    Args:
      packed: the bits.
      like: arrays or shapes by path, of the masks.
    """
    n = sum(leaf.size for leaf in like.values())
    flags = unpack_bits(packed.bits, 1, n).astype(bool)
    masks, start = {}, 0
    for name, leaf in sorted(like.items()):
        masks[name] = flags[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return masks
