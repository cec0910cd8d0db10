"""What movement pruning's scores belong to, entries or blocks, and the masks of them.

Sanh, Wolf, Rush, 2020, arXiv 2005.07683; Lagunas, Charlaix, Sanh, Rush, 2021, arXiv
2109.04838.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.averaging import Averaging
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning.movement_training import Trained
from fedjax_fm.sparsity import (
    Layers,
    block_shape,
    check_block,
    expand_blocks,
    put,
    straight_through,
)
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Tree

Blocks = Mapping[str, tuple[int, int]]
MasksOf = Callable[[Flat, jax.Array, Layers], Flat]


class Movement(NamedTuple):
    """What both kinds of movement pruning share.

    Attributes:
      average: local training, weights and the server's step.
      score_optimizer: of the scores.
      layers: which leaves are pruned.
      blocks: (rows, columns) of a block, by regular expression; others have a score for
        each entry.
      masks: `(scores, round, layers) -> ` masks of the blocks.
      penalty: lambda, on the mean of sigmoid(S).
    """

    average: Averaging
    score_optimizer: ClientOptimizer
    layers: Layers
    blocks: Blocks
    masks: MasksOf
    penalty: float

    def first_scores(self, delta: Tree) -> Flat:
        """Zeros, one for each block.

        Args:
          delta: its shapes are read.
        """
        weights = self.layers.weights(delta)
        return {name: jnp.zeros(self._shape(name, x)) for name, x in weights.items()}

    def _shape(self, name: str, leaf: jax.Array) -> tuple[int, ...]:
        """The shape of a leaf's scores."""
        for pattern, block in self.blocks.items():
            if re.search(pattern, name):
                return block_shape(name, leaf.shape, block)
        return leaf.shape

    def entry_masks(self, delta: Tree, scores: Flat, round_index: jax.Array) -> Flat:
        """The masks of all entries in a round.

        Args:
          delta: W.
          scores: S.
          round_index: i32[].
        """
        stopped = jax.lax.stop_gradient(scores)
        masks = self.masks(stopped, round_index, self.layers)
        weights = self.layers.weights(delta)
        return {name: _expanded(masks[name], x) for name, x in weights.items()}

    def pruned(self, trained: Trained, round_index: jax.Array) -> Tree:
        """W', through which gradients reach W and S.

        Args:
          trained: both.
          round_index: i32[].
        """
        delta, scores = trained
        masks = self.entry_masks(delta, scores, round_index)

        def one(name, weight):
            score = _expanded(scores[name], weight)
            return straight_through(weight, score, masks[name])

        weights = self.layers.weights(delta)
        return put(delta, {name: one(name, x) for name, x in weights.items()})


def _expanded(blocks: jax.Array, leaf: jax.Array) -> jax.Array:
    """What holds for blocks, or for entries, for each entry."""
    if blocks.shape == leaf.shape:
        return blocks
    return expand_blocks(blocks, leaf.shape)


def checked_blocks(blocks: Any) -> Blocks:
    """`blocks`, if it says (rows, columns) by regular expressions.

    Args:
      blocks: what should.

    Raises:
      TypeError, ValueError: it does not.
    """
    if not isinstance(blocks, Mapping):
        raise TypeError(
            f"expected blocks as {{regular expression: (rows, columns)}}, got "
            f"blocks={checks.shown(blocks)}"
        )
    for pattern, block in blocks.items():
        Layers(pattern).checked()
        check_block(block)
    return dict(blocks)
