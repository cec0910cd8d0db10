"""Narrower models inside a wide one: prefixes of its layers (HeteroFL, FjORD).

A model of width p keeps the first ceil(p * size) entries of every axis that a rule
calls narrow. The prefix of a prefix is a prefix of the whole, so all widths nest. The
loss is handed smaller arrays and reads its sizes from their shapes. Normalisations are
the model's own: layer norms see the entries that are there. There are no batch
statistics to keep.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.types import Tree


class Groups(NamedTuple):
    """An axis of equal parts laid out one after the other, a prefix inside each.

    Attention heads, fused query, key and value (3 * heads), pictures flattened pixel by
    pixel with channels last (pixels).

    Attributes:
      n: the number of parts; it divides the axis.
    """

    n: int


# What becomes of an axis: kept whole, a prefix, a prefix in each group, or kept whole
# with one entry per label.
Axis = Literal["width", "labels"] | Groups | None


class Prefixes(NamedTuple):
    """Which part of a tree each width holds; made by `nest`.

    Attributes:
      full: the whole tree, of `jax.ShapeDtypeStruct`.
      axes: like it, at every leaf a tuple of `Axis`.
    """

    full: Tree
    axes: Tree

    def take(self, tree: Tree, width: float) -> Tree:
        """The slice of that width, from the full tree or from a wider slice of it.

        Args:
          tree: the full tree or a slice.
          width: above 0, at most 1.

        Returns:
          A tree of the shapes that `shapes(width)` says, which are static.

        Raises:
          ValueError: the width is outside of (0, 1], or the tree has other leaves or is
            narrower already.
        """
        return self._map(lambda x, full, axes: _take(x, full, axes, width), tree)

    def pad(self, tree: Tree) -> Tree:
        """A slice in its place in the full tree, zeros around it.

        Args:
          tree: a slice of any width.

        Returns:
          A tree of the full shapes.
        """
        return self._map(_pad, tree)

    def mask(self, tree: Tree, width: float) -> Tree:
        """The full tree with zeros outside the slice of that width.

        A forward pass on it costs as much as the whole model and gives what the slice
        gives, where the model divides by the live sizes: for tests and for studies that
        need one shape.

        Args:
          tree: the full tree.
          width: above 0, at most 1.

        Returns:
          `pad(take(tree, width))`.
        """
        return self.pad(self.take(tree, width))

    def shapes(self, width: float) -> Tree:
        """The shapes of the slice of that width.

        Args:
          width: above 0, at most 1.

        Returns:
          A tree of `jax.ShapeDtypeStruct`.
        """

        def of_zeros():
            full = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.full)
            return self.take(full, width)

        return jax.eval_shape(of_zeros)

    def by_label(self, tree: Tree, labels: jax.Array, fill: jax.Array) -> Tree:
        """Arrays that broadcast against a slice, with one number for each label.

        Args:
          tree: a slice.
          labels: [K], laid along the axes of labels.
          fill: [], of the leaves that have no such axis.

        Returns:
          A tree like the slice.
        """

        def one(x, full, axes):
            if "labels" not in axes:
                return fill
            return labels.reshape([-1 if axis == "labels" else 1 for axis in axes])

        return self._map(one, tree)

    def n_labels(self) -> int | None:
        """K, the length of the axes of labels; None if there is none."""
        sizes = jax.tree.map(_label_sizes, self.full, self.axes)
        found = jax.tree.leaves(sizes)
        return found[0] if found else None

    def _map(self, f: Callable, tree: Tree) -> Tree:
        if jax.tree.structure(tree) != jax.tree.structure(self.full):
            raise ValueError(
                "the tree is not like the one the prefixes were made for: "
                f"{self._difference(tree)}"
            )
        return jax.tree.map(f, tree, self.full, self.axes)

    def _difference(self, tree: Tree) -> str | None:
        return trees.difference(self.full, trees.shapes(tree))

    def check(self, delta: Tree) -> None:
        """Compares a full tree with the one that the prefixes were made for.

        Args:
          delta: the full tree.

        Raises:
          ValueError: its leaves, shapes or dtypes are others.
        """
        if problem := self._difference(delta):
            raise ValueError(
                f"the delta is not like the one the prefixes were made for: {problem}"
            )


def nest(delta: Tree, rules: Mapping[str, tuple[Axis, ...]]) -> Prefixes:
    """Says which axes of a tree get narrower.

    Args:
      delta: arrays or `jax.ShapeDtypeStruct`.
      rules: {regular expression: one entry per axis of the leaf}, searched in the
        leaf's dotted path; the first that matches counts. An entry is None (kept whole:
        inputs, vocabularies, layers stacked in front), "width" (a prefix), `Groups(n)`
        (a prefix inside each of n parts) or "labels" (kept whole, one entry per label:
        of classifiers, and of embeddings where tokens are the labels).

    Returns:
      What cuts slices from that tree and puts them back.

    Raises:
      ValueError: a leaf without a rule, a rule without a leaf, or a rule that does not
        fit a leaf's shape.

    References:
      Diao et al. 2020, arXiv 2010.01264; Horvath et al. 2021, arXiv
      2102.13451, ordered dropout.

    Example:
      >>> delta = {"hidden": jnp.zeros((3, 8)), "out": jnp.zeros((8, 2))}
      >>> rules = {"hidden": (None, "width"), "out": ("width", "labels")}
      >>> prefixes = nest(delta, rules)
      >>> jax.tree.map(jnp.shape, prefixes.take(delta, 0.25))
      {'hidden': (3, 2), 'out': (2, 2)}
    """
    full, used = trees.shapes(delta), set()

    def of_leaf(path: tuple, leaf: Any) -> tuple[Axis, ...]:
        name = trees.path_of(path)
        rule = next((rule for rule in rules if re.search(rule, name)), None)
        if rule is None:
            raise ValueError(
                f"no rule matches {name} of shape {list(leaf.shape)}; "
                f"the rules are {list(rules)}"
            )
        used.add(rule)
        _check_rule(rule, rules[rule], name, leaf.shape)
        return tuple(rules[rule])

    axes = jax.tree.map_with_path(of_leaf, full)
    if idle := [rule for rule in rules if rule not in used]:
        names = [trees.path_of(path) for path, _ in jax.tree.leaves_with_path(full)]
        raise ValueError(
            f"the rules {idle} are the first to match no leaf; the leaves are {names}"
        )
    sizes_of_leaves = jax.tree.map(_label_sizes, full, axes)
    sizes = set(jax.tree.leaves(sizes_of_leaves))
    if len(sizes) > 1:
        raise ValueError(
            f"expected one number of labels, got axes of {sorted(sizes)} entries"
        )
    return Prefixes(full, axes)


def kept(size: int, width: float) -> int:
    """The entries that an axis keeps: ceil(width * size), at least 1.

    The rounding of a width does not count, nor does that of f32: 0.7 * 10 is 7, not 8.

    Args:
      size: of the axis.
      width: above 0, at most 1.

    Returns:
      A number of entries.

    Raises:
      TypeError, ValueError: one of them is no number or out of bounds.
    """
    checks.whole("size", size, least=0)
    check_width(width)
    return max(math.ceil(width * size * (1 - 1e-7)), 1)


def check_width(width: float) -> None:
    """Refuses what is no width.

    Args:
      width: above 0, at most 1.

    Raises:
      TypeError, ValueError: it is no number, or out of bounds.
    """
    checks.real("width", width, above=0, most=1)


def _check_rule(
    rule: str, axes: tuple[Axis, ...], name: str, shape: tuple[int, ...]
) -> None:
    if (
        not isinstance(axes, tuple)
        or len(axes) != len(shape)
        or axes.count("labels") > 1
    ):
        raise ValueError(
            f"rule {rule!r}: expected a tuple of {len(shape)} entries, at most "
            f"one of them 'labels', for {name} of shape {list(shape)}, got "
            f"{axes!r}"
        )
    for axis, size in zip(axes, shape, strict=True):
        if isinstance(axis, Groups):
            checks.whole("n", axis.n)
            if axis.n < 1 or size % axis.n:
                raise ValueError(
                    f"rule {rule!r}: {size} entries of {name} {list(shape)} do "
                    f"not divide into {axis}"
                )
        elif axis not in (None, "width", "labels"):
            raise ValueError(
                f"rule {rule!r}: expected None, 'width', 'labels' or Groups(n), "
                f"got {axis!r}"
            )


def _label_sizes(leaf: Any, axes: tuple[Axis, ...]) -> list[int]:
    """The lengths of a leaf's axes of labels."""
    pairs = zip(leaf.shape, axes, strict=True)
    return [size for size, axis in pairs if axis == "labels"]


def _sizes(full: Any, axes: tuple[Axis, ...], width: float) -> tuple[int, ...]:
    """The shape that a leaf has at that width."""

    def of_axis(size, axis):
        if axis in (None, "labels"):
            return size
        if isinstance(axis, Groups):
            return axis.n * kept(size // axis.n, width)
        return kept(size, width)

    return tuple(map(of_axis, full.shape, axes))


def _check_slice(
    x: Any, most: tuple[int, ...], axes: tuple[Axis, ...], least: tuple[int, ...]
) -> None:
    """Refuses a leaf that is no slice between these shapes."""

    def fits(axis, n, low, high):
        return n == high if axis in (None, "labels") else low <= n <= high

    bounds = (least, most)
    fitting = map(fits, axes, x.shape, *bounds)
    if x.ndim != len(axes) or not all(fitting):
        raise ValueError(
            f"expected a slice of {list(most)}, at least {list(least)}, "
            f"got {list(x.shape)}"
        )
    for n, axis in zip(x.shape, axes, strict=True):
        if isinstance(axis, Groups) and n % axis.n:
            raise ValueError(
                f"{n} entries of {list(x.shape)} do not divide into {axis}"
            )


def _take(x: Any, full: Any, axes: tuple[Axis, ...], width: float) -> jax.Array:
    shape = _sizes(full, axes, width)
    _check_slice(x, full.shape, axes, shape)

    def cut(x, axis, size):
        return jax.lax.slice_in_dim(x, 0, size, axis=axis)

    return _group_by_group(cut, x, shape, axes)


def _pad(x: Any, full: Any, axes: tuple[Axis, ...]) -> jax.Array:
    _check_slice(x, full.shape, axes, (1,) * len(axes))

    def pad(x, axis, size):
        behind = [size - n if i == axis else 0 for i, n in enumerate(x.shape)]
        return jnp.pad(x, [(0, n) for n in behind])

    return _group_by_group(pad, x, full.shape, axes)


def _group_by_group(
    resize: Callable, x: Any, shape: tuple[int, ...], axes: tuple[Axis, ...]
) -> jax.Array:
    """`resize(x, axis, size)` on every axis of another size, inside its groups."""
    x = jnp.asarray(x)
    pairs = zip(axes, shape, strict=True)
    for i, (axis, size) in enumerate(pairs):
        before, old, after = x.shape[:i], x.shape[i], x.shape[i + 1 :]
        if old != size:
            groups = axis.n if isinstance(axis, Groups) else 1
            split = x.reshape(*before, groups, old // groups, *after)
            resized = resize(split, i + 1, size // groups)
            x = resized.reshape(*before, size, *after)
    return x
