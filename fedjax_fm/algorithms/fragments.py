"""Fragments of a tree: every n-th row of its leaves."""

import jax
import jax.numpy as jnp

from fedjax_fm.types import Tree


def _is_cut(leaf: jax.Array, n: int) -> bool:
    """Whether the leaf has rows for every fragment."""
    return jnp.ndim(leaf) > 0 and leaf.shape[0] >= n


def fragment(tree: Tree, p: int, n: int) -> list:
    """The arrays of fragment p of n: rows p, p + n, ... of the leaves.

    Args:
      tree: arrays; a leaf with fewer than n rows is in one fragment as a whole.
      p: 0 to n - 1.
      n: how many fragments.

    Returns:
      A list, in the order of the leaves.

    Example:
      >>> fragment({"layers": jnp.arange(5)}, 1, 2)[0].tolist()
      [1, 3]
    """
    found = []
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        if _is_cut(leaf, n):
            found.append(leaf[p::n])
        elif number % n == p:
            found.append(leaf)
    return found


def with_fragment(tree: Tree, part: list, p: int, n: int) -> Tree:
    """The tree with other arrays in its fragment p of n.

    Args:
      tree: arrays.
      part: as `fragment` gives it.
      p: 0 to n - 1.
      n: how many fragments.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = iter(part)
    for number, leaf in enumerate(leaves):
        if _is_cut(leaf, n):
            leaves[number] = leaf.at[p::n].set(next(parts).astype(leaf.dtype))
        elif number % n == p:
            leaves[number] = next(parts).astype(leaf.dtype)
    return jax.tree.unflatten(structure, leaves)
