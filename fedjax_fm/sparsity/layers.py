"""Which leaves of a tree are pruned, and which of their axes count layers."""

import re
from typing import Any, NamedTuple

import jax

from fedjax_fm import trees
from fedjax_fm.types import Tree

# By the dotted path of a leaf: bool for masks, floats for weights and scores.
Flat = dict[str, jax.Array]


class Layers(NamedTuple):
    """The leaves of a tree that are pruned; all others are left as they are.

    Attributes:
      pruned: regular expression of the dotted paths of the leaves to prune; None takes
        those with at least two axes, apart from the one that counts layers: matrices
        and kernels, not biases and norms.
      stacked: regular expression of leaves whose first axis counts layers, as in this
        package's models; each of them is a layer then. None: none is.

    Example:
      >>> import jax.numpy as jnp
      >>> tree = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> list(Layers().weights(tree))
      ['dense.kernel']
    """

    pruned: str | None = None
    stacked: str | None = None

    def checked(self) -> "Layers":
        """Itself, after a check of both expressions.

        Raises:
          TypeError: one of them is no text.
          ValueError: one of them is no regular expression.
        """
        for name, pattern in self._asdict().items():
            if pattern is None:
                continue
            if not isinstance(pattern, str):
                raise TypeError(
                    f"expected {name} to be a regular expression, got "
                    f"{name}={pattern!r}"
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"expected {name} to be a regular expression, got "
                    f"{name}={pattern!r}: {error}"
                ) from error
        return self

    def is_stacked(self, path: str) -> bool:
        """Whether the first axis of a leaf counts layers.

        Args:
          path: of the leaf, dotted.
        """
        return self.stacked is not None and bool(re.search(self.stacked, path))

    def is_pruned(self, path: str, leaf: Any) -> bool:
        """Whether a leaf is pruned.

        Args:
          path: of the leaf, dotted.
          leaf: the array, or its shape.
        """
        if self.pruned is not None:
            return bool(re.search(self.pruned, path))
        return len(leaf.shape) >= 2 + self.is_stacked(path)

    def weights(self, tree: Tree) -> Flat:
        """The leaves that are pruned, by path.

        Args:
          tree: arrays, or their shapes.

        Returns:
          {dotted path: leaf}.

        Raises:
          ValueError: no leaf is pruned, or one of them has no entry.
        """
        found = {}
        for path, leaf in jax.tree.leaves_with_path(tree):
            name = trees.path_of(path)
            if self.is_pruned(name, leaf):
                found[name] = leaf
        if not found:
            raise ValueError(
                f"pruned={self.pruned!r} names no leaf of {trees.described(tree, 8)}; "
                "give a regular expression of the paths of its weights"
            )
        empty = [name for name, leaf in found.items() if leaf.size == 0]
        if empty:
            raise ValueError(f"{empty[0]} has no entry, there is nothing to prune")
        return found

    def rows(self, path: str, leaf: Any) -> tuple[int, int]:
        """A leaf as rows, one for each of its layers.

        Args:
          path: of the leaf, dotted.
          leaf: the array, or its shape.

        Returns:
          (layers in it, entries of one).
        """
        n_layers = leaf.shape[0] if self.is_stacked(path) else 1
        return n_layers, leaf.size // n_layers


def put(tree: Tree, weights: Flat) -> Tree:
    """A tree with some of its leaves replaced.

    Args:
      tree: arrays.
      weights: {dotted path: new leaf}.

    Returns:
      A tree of the same structure.
    """

    def one(path, leaf):
        return weights.get(trees.path_of(path), leaf)

    return jax.tree.map_with_path(one, tree)
