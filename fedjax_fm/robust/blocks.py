"""Walks over the coordinates of a cohort's uploads, some at a time.

The uploads are in memory already; what a rule makes of them (sorted copies,
differences) is not: no more than [C, BLOCK] of it exists at once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.types import Tree

BLOCK = 1 << 16  # coordinates of one block


def over_blocks(f: Callable[..., jax.Array], *trees: Tree) -> Tree:
    """A function of coordinates, block by block.

    Args:
      f: `(f32[C, n], ...) -> f32[n]`, each coordinate by itself.
      *trees: what f is given, leaves [C, ...] in one structure; C may differ.

    Returns:
      Leaves [...].
    """

    def of_leaf(*leaves):
        rows, shape = _as_rows(leaves), leaves[0].shape[1:]
        size, width = _sizes(rows)
        if width == size:
            return f(*rows).reshape(shape)

        def step(i, done):
            start = jnp.minimum(i * width, size - width)  # the last ones may overlap
            block = f(*_cut(rows, start, width))
            return jax.lax.dynamic_update_slice_in_dim(done, block, start, axis=0)

        zeros = jnp.zeros(size, rows[0].dtype)
        return jax.lax.fori_loop(0, -(-size // width), step, zeros).reshape(shape)

    return jax.tree.map(of_leaf, *trees)


def sum_over_blocks(f: Callable[..., Any], *trees: Tree) -> Any:
    """The sum over blocks of a function that is 0 for coordinates of zeros.

    Args:
      f: `(f32[C, n], ...) -> tree`, a sum over coordinates.
      *trees: what f is given, leaves [C, ...] in one structure; C may differ.

    Returns:
      The tree.
    """
    leaves = [jax.tree.leaves(tree) for tree in trees]
    parts = [_sum_of_leaf(f, _as_rows(leaf)) for leaf in zip(*leaves, strict=True)]
    return jax.tree.map(lambda *x: sum(x[1:], x[0]), *parts)


def _sum_of_leaf(f: Callable[..., Any], rows: list[jax.Array]) -> Any:
    size, width = _sizes(rows)
    if width == size:
        return f(*rows)

    def step(i, total):
        start = jnp.minimum(i * width, size - width)
        is_new = start + jnp.arange(width) >= i * width  # no coordinate counts twice
        blocks = [jnp.where(is_new, x, 0.0) for x in _cut(rows, start, width)]
        return jax.tree.map(jnp.add, total, f(*blocks))

    shapes = jax.eval_shape(f, *_cut(rows, 0, width))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.fori_loop(0, -(-size // width), step, zeros)


def _as_rows(leaves: Any) -> list[jax.Array]:
    """Each leaf [C, ...] as [C, n]."""
    return [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]


def _sizes(rows: list[jax.Array]) -> tuple[int, int]:
    """(coordinates, coordinates of a block)."""
    size = rows[0].shape[1]
    return size, min(BLOCK, size)


def _cut(rows: list[jax.Array], start: Any, width: int) -> list[jax.Array]:
    return [jax.lax.dynamic_slice_in_dim(x, start, width, axis=1) for x in rows]
