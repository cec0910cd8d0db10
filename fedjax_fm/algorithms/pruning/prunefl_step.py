"""PruneFL's adaptive step: the mask that gains the most in a second.

    Gamma(M) = sum_{j in M} g_j^2 / (c + sum_{j in M} t_j)

Jiang et al. 2022, arXiv 1909.12326, adaptive pruning. Of all masks that
hold what must stay, adding the others in the order of g_j^2 / t_j while that ratio is
above Gamma ends at the largest one.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.sparsity import Layers, magnitude, ranked_within, top_of_layers
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Tree


class RoundTime(NamedTuple):
    """The time that a round takes, as far as the model's size decides it.

        c + sum over the kept entries of t_j

    Attributes:
      constant: c, seconds of a round without an entry, above 0.
      entry: t_j, seconds that an entry adds, at least 0: to send it both ways, and to
        compute with it in every local step. One number, or {regular expression of a
        leaf's dotted path: seconds}, the first that fits.

    Example:
      >>> import jax.numpy as jnp
      >>> time = RoundTime(constant=2.0, entry={"conv": 0.5, "": 0.25})
      >>> masks = {"w": jnp.array([[True, False]])}
      >>> float(time.seconds({"w": jnp.ones((1, 2)), "conv": jnp.ones(2)}, masks))
      3.25
    """

    constant: float
    entry: float | Mapping[str, float]

    def checked(self) -> "RoundTime":
        """Itself, after a check of its values.

        Raises:
          TypeError, ValueError: a number out of its bounds, or no regular expression.
        """
        checks.real("constant", self.constant, above=0)
        if not isinstance(self.entry, Mapping):
            checks.real("entry", self.entry, least=0)
            return self
        for pattern, seconds in self.entry.items():
            Layers(pattern).checked()
            checks.real("entry", seconds, least=0)
        return self

    def of_leaf(self, path: str) -> float:
        """t_j of a leaf's entries.

        Args:
          path: of the leaf, dotted.

        Raises:
          ValueError: none of the expressions fits it.
        """
        if not isinstance(self.entry, Mapping):
            return self.entry
        for pattern, seconds in self.entry.items():
            if re.search(pattern, path):
                return seconds
        raise ValueError(
            f"entry={dict(self.entry)} says no time for the leaf {path!r}; give '' for "
            "all others"
        )

    def seconds(self, tree: Tree, masks: Flat) -> jax.Array:
        """f32[]: of a round with these masks.

        Args:
          tree: the trainable tree, or its shapes.
          masks: bool by path; leaves without one are whole.
        """
        total = jnp.float32(self.constant)
        for path, leaf in jax.tree.leaves_with_path(tree):
            name = trees.path_of(path)
            kept = jnp.sum(masks[name]) if name in masks else leaf.size
            total = total + self.of_leaf(name) * kept
        return total


def most_per_second(
    gains: jax.Array,
    seconds: jax.Array,
    must: jax.Array,
    *,
    gain: Any = 0.0,
    constant: Any,
) -> jax.Array:
    """The mask of the largest gain a second, of those that hold what must stay.

    Args:
      gains: g_j^2, f32[n], at least 0.
      seconds: t_j, f32[n], at least 0.
      must: bool[n], entries that stay in any case.
      gain: of what is not among these entries and stays, f32[].
      constant: c with the seconds of that, f32[], above 0.

    Returns:
      bool[n], `must` among them. Of entries whose ratio equals Gamma none is added.

    References:
      Jiang et al. 2022, arXiv 1909.12326, adaptive pruning.

    Example:
      >>> gains, seconds = jnp.array([1.0, 8.0, 3.0]), jnp.ones(3)
      >>> must = jnp.array([True, False, False])
      >>> most_per_second(gains, seconds, must, constant=1.0).tolist()
      [True, True, False]
    """
    for_nothing = jnp.where(gains > 0, jnp.inf, 0.0)
    takes_time = seconds > 0
    ratio = gains / jnp.where(takes_time, seconds, 1.0)
    ratio = jnp.where(takes_time, ratio, for_nothing)
    order = jnp.argsort(jnp.where(must, -1.0, ratio), descending=True, stable=True)
    added = jnp.where(must, 0.0, gains)[order]
    spent = jnp.where(must, 0.0, seconds)[order]
    first_gain = gain + jnp.sum(gains, where=must)
    first_spent = constant + jnp.sum(seconds, where=must)
    # Gamma before each entry, if all entries ahead of it were added.
    before = first_gain + jnp.cumsum(added) - added
    until = first_spent + jnp.cumsum(spent) - spent
    grows = (ratio[order] > before / until) & ~must[order]
    taken = jnp.cumprod(grows.astype(jnp.int32)) == 1
    return must.at[order].max(taken)


def adapted_masks(
    tree: Tree,
    masks: Flat,
    squares: Tree,
    *,
    layers: Layers,
    time: RoundTime,
    dropped: jax.Array,
) -> Flat:
    """The masks of the next rounds.

    Of each layer's kept entries the largest stay, all but a share; the others and those
    that were pruned compete.

    Args:
      tree: the weights, those that are pruned at the values that they had.
      masks: the present ones.
      squares: g_j^2 of all leaves.
      layers: which leaves are pruned.
      time: of a round.
      dropped: f32[], the share of each layer's kept entries that competes.
    """
    must = _largest_of_kept(layers.weights(tree), masks, layers, dropped)
    others_gain, others_seconds = jnp.float32(0), jnp.float32(time.constant)
    for path, leaf in jax.tree.leaves_with_path(squares):
        name = trees.path_of(path)
        if name not in masks:
            others_gain += jnp.sum(leaf)
            others_seconds += time.of_leaf(name) * leaf.size
    gains = layers.weights(squares)
    seconds = {name: jnp.full(x.shape, time.of_leaf(name)) for name, x in gains.items()}
    kept = most_per_second(
        _joined(gains),
        _joined(seconds),
        _joined({name: must[name] for name in gains}),
        gain=others_gain,
        constant=others_seconds,
    )
    found, start = {}, 0
    for name, leaf in gains.items():
        found[name] = kept[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return found


def _joined(leaves: Flat) -> jax.Array:
    """All entries in a row."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves.values()])


def _largest_of_kept(
    weights: Flat, masks: Flat, layers: Layers, dropped: jax.Array
) -> Flat:
    """The largest of each layer's kept entries, all but a share; one at least."""

    def count(name, mask):
        kept = jnp.sum(mask.reshape(layers.rows(name, mask)), axis=1)
        fewer = kept - jnp.floor(dropped * kept + 0.5).astype(kept.dtype)
        return jnp.maximum(fewer, 1)

    counts = {name: count(name, mask) for name, mask in masks.items()}
    scores = ranked_within(magnitude(weights), masks)
    return top_of_layers(scores, counts, layers)
