"""RAVAN's heads: finding them in a delta, choosing among them.

Heads lie first here, squares H [h, ..., r, r] beside scales s [h, ...], as a `Pair`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    along_rows,
    child,
    from_leaves,
    leaves_by_path,
    take,
)
from fedjax_fm.types import Tree


def split_heads(delta: Tree) -> Factors:
    """Finds squares `lora_h` [..., h, r, r] beside scales `lora_s` [..., h].

    Args:
      delta: the trainable tree.

    Returns:
      Pairs of squares [h, ..., r, r] and scales [h, ...], and all other leaves.

    Raises:
      ValueError: there are none, or one lacks its scales.
    """
    leaves, form = leaves_by_path(delta)
    rest = dict(leaves)
    squares, scales = take(rest, "lora_h"), take(rest, "lora_s")
    if not squares or squares.keys() != scales.keys():
        raise ValueError(
            "expected leaves lora_h beside lora_s in the delta (peft.ravan makes them), "
            f"got {sorted(leaves)}"
        )
    pairs = {}
    for layer, square in squares.items():
        heads_first = jnp.moveaxis(square, -3, 0)
        pairs[layer] = Pair(heads_first, jnp.moveaxis(scales[layer], -1, 0))
    return Factors(pairs, rest, form)


def join_heads(factors: Factors) -> Tree:
    """The inverse of `split_heads`.

    Args:
      factors: arrays.

    Returns:
      The delta.
    """
    leaves = dict(factors.rest)
    for layer, (squares, scales) in factors.pairs.items():
        leaves[child(layer, "lora_h")] = jnp.moveaxis(squares, 0, -3)
        leaves[child(layer, "lora_s")] = jnp.moveaxis(scales, 0, -1)
    return from_leaves(leaves, factors.form)


def scaled(factors: Factors) -> Factors:
    """Heads with their scales in the squares.

    Args:
      factors: pairs of squares and scales.

    Returns:
      Pairs of s_i H_i, and nothing in the place of the scales.
    """
    pairs = {}
    for layer, (squares, scales) in factors.pairs.items():
        pairs[layer] = Pair(scales[..., None, None] * squares)
    return dataclasses.replace(factors, pairs=pairs)


def with_scales(squares: Factors, scales: dict[str, jax.Array]) -> Factors:
    """Complete pairs.

    Args:
      squares: pairs without scales.
      scales: {layer: f32[h, ...]}.

    Returns:
      Pairs of squares and scales.
    """
    pairs = {layer: Pair(p.a, scales[layer]) for layer, p in squares.pairs.items()}
    return dataclasses.replace(squares, pairs=pairs)


def chosen_of(
    chosen: dict[str, jax.Array], trained: Factors, others: Factors
) -> Factors:
    """Heads that are chosen of one tree, the others of another.

    Args:
      chosen: {layer: bool[h]}.
      trained: complete pairs; the rest is taken from here.
      others: complete pairs.

    Returns:
      Complete pairs.
    """

    def choose(is_chosen: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(along_rows(is_chosen, x), x, y)

    pairs = {}
    for layer, (squares, scales) in trained.pairs.items():
        other, is_chosen = others.pairs[layer], chosen[layer]
        pairs[layer] = Pair(
            choose(is_chosen, squares, other.a), choose(is_chosen, scales, other.b)
        )
    return dataclasses.replace(trained, pairs=pairs)
