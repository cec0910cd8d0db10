"""Low-rank factors: finding them in a delta, cutting them to a rank, multiplying them.

Factors lie rank first here, a [r, ..., in] and b [r, ..., out]. So a client's rank is a
number of leading rows, and stacking is concatenation. What travels is `Rows`. The
update of a layer is sum_i a_i b_i^T, [..., in, out], times the layer's own scaling,
which is the same for all ranks (alpha_k in proportion to r_k, as in FLoRA's code).
"""

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.types import Rows, Tree

Part = Literal["", "a", "b", "ab"]  # which factors of every pair


class Pair(NamedTuple):
    """The factors of one layer; None for a factor that is left out."""

    a: Any = None  # [r, ..., in]
    b: Any = None  # [r, ..., out]

    def map(self, f: Callable[[Any], Any]) -> "Pair":
        """`f` of each factor.

        Args:
          f: `factor -> anything`.

        Returns:
          A pair; neither factor may be left out.
        """
        a, b = f(self.a), f(self.b)
        return Pair(a, b)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """A delta, taken apart.

    Attributes:
      pairs: by the dotted path of the adapted layer.
      rest: all other leaves (a classifier), by path; averaged as in FedAvg.
      form: structure and paths of the delta.
    """

    pairs: dict[str, Pair]
    rest: dict[str, Any]
    form: Hashable = dataclasses.field(metadata={"static": True})


class Layout(NamedTuple):
    """Which leaves of a delta are factors, and how many rows a rank has.

    Attributes:
      split: `delta -> Factors`.
      join: its inverse.
      power: a client of rank r has the first r**power rows.
    """

    split: Callable[[Tree], Factors]
    join: Callable[[Factors], Tree]
    power: int = 1


# A delta and its leaves


def leaves_by_path(delta: Tree) -> tuple[dict[str, Any], Hashable]:
    """({path: leaf}, form); `from_leaves` is the inverse."""
    found, structure = jax.tree.flatten_with_path(delta)
    leaves = {trees.path_of(path): leaf for path, leaf in found}
    return leaves, (structure, tuple(leaves))


def from_leaves(leaves: dict[str, Any], form: Any) -> Tree:
    """The tree of that form."""
    structure, paths = form
    return jax.tree.unflatten(structure, [leaves[path] for path in paths])


def child(layer: str, name: str) -> str:
    """Dotted path of something below `layer`; the root's own path is ''."""
    return f"{layer}.{name}" if layer else name


def take(leaves: dict[str, Any], name: str) -> dict[str, Any]:
    """Removes all leaves of this name; returns them as {layer: leaf}, sorted."""
    ends = [path.rpartition(".") for path in leaves]
    layers = sorted(layer for layer, _, last in ends if last == name)
    paths = {layer: child(layer, name) for layer in layers}
    return {layer: leaves.pop(path) for layer, path in paths.items()}


def split(delta: Tree) -> Factors:
    """Finds the pairs by name, `lora_a` [..., in, r] beside `lora_b` [..., r, out].

    Args:
      delta: the trainable tree.

    Returns:
      Its factors, rows first, and all other leaves.

    Raises:
      ValueError: there are no pairs, or one lacks a factor.
    """
    leaves, form = leaves_by_path(delta)
    rest = dict(leaves)
    a, b = take(rest, "lora_a"), take(rest, "lora_b")
    if not a or a.keys() != b.keys():
        raise ValueError(
            f"expected pairs of leaves lora_a and lora_b in the delta, got {sorted(leaves)}"
        )
    pairs = {}
    for layer in a:
        rows_of_a = jnp.moveaxis(a[layer], -1, 0)
        rows_of_b = jnp.moveaxis(b[layer], -2, 0)
        pairs[layer] = Pair(rows_of_a, rows_of_b)
    return Factors(pairs, rest, form)


def join(factors: Factors) -> Tree:
    """The inverse of `split`.

    Args:
      factors: arrays, none left out.

    Returns:
      The delta.
    """
    leaves = dict(factors.rest)
    for layer, pair in factors.pairs.items():
        leaves[child(layer, "lora_a")] = jnp.moveaxis(pair.a, 0, -1)
        leaves[child(layer, "lora_b")] = jnp.moveaxis(pair.b, 0, -2)
    return from_leaves(leaves, factors.form)


PAIRS = Layout(split, join)


# Parts


def only(factors: Factors, part: Part) -> Factors:
    """A part of every pair, and the rest.

    Args:
      factors: complete.
      part: which factors.

    Returns:
      Factors with None in place of the others.
    """
    pairs = {
        layer: Pair(
            *(x if name in part else None for name, x in zip("ab", pair, strict=True))
        )
        for layer, pair in factors.pairs.items()
    }
    return dataclasses.replace(factors, pairs=pairs)


def filled(factors: Factors, pairs: dict[str, Pair]) -> Factors:
    """Factors completed.

    Args:
      factors: of which some are left out.
      pairs: by layer, has those; empty: there is nothing to fill.

    Returns:
      Factors with those of `pairs` where there was None.
    """

    def fill(pair: Pair, other: Pair) -> Pair:
        return Pair(*(y if x is None else x for x, y in zip(pair, other, strict=True)))

    if not pairs:
        return factors
    whole = {layer: fill(pair, pairs[layer]) for layer, pair in factors.pairs.items()}
    return dataclasses.replace(factors, pairs=whole)


# Ranks


def largest_height(factors: Factors) -> int:
    """The rows of the largest pair."""
    return max(leaf.shape[0] for leaf in jax.tree.leaves(factors.pairs))


def along_rows(x: jax.Array, like: jax.Array) -> jax.Array:
    """The array `x` with axes of length 1 behind, so that it broadcasts over `like`'s rows."""
    return x.reshape(*x.shape, *[1] * (like.ndim - x.ndim))


def first_rows(x: jax.Array, count: jax.Array) -> jax.Array:
    """The array `x` with all rows past `count` set to zero."""
    is_real = jnp.arange(x.shape[0]) < count
    return jnp.where(along_rows(is_real, x), x, 0)


def cut(tree: Tree, rows: jax.Array | None) -> Tree:
    """Cuts every array to its first rows.

    Args:
      tree: arrays [r, ...].
      rows: i32[], how many, at most r are kept; None: the tree as it is.

    Returns:
      The tree with `Rows` for arrays.
    """
    if rows is None:
        return tree

    def cut_one(x: jax.Array) -> Rows:
        count = jnp.minimum(rows, x.shape[0]).astype(jnp.int32)
        return Rows(first_rows(x, count), count)

    return jax.tree.map(cut_one, tree)


def cut_pairs(factors: Factors, rows: jax.Array | None) -> Factors:
    """Cuts the pairs to their first rows; the rest stays whole.

    Args:
      factors: arrays.
      rows: i32[], how many; None: as they are.

    Returns:
      Factors whose pairs are of `Rows`.
    """
    return dataclasses.replace(factors, pairs=cut(factors.pairs, rows))


def as_arrays(tree: Tree) -> Tree:
    """`Rows` as arrays, which are zero beyond the count."""

    def is_rows(node: Any) -> bool:
        return isinstance(node, Rows)

    return jax.tree.map(lambda x: x.values if is_rows(x) else x, tree, is_leaf=is_rows)


def cut_like(tree: Tree, pattern: Tree) -> Tree:
    """Cuts arrays as others are cut.

    Args:
      tree: arrays.
      pattern: the same tree of arrays and `Rows`.

    Returns:
      The tree with `Rows` where the pattern has them.
    """

    def cut_one(x: jax.Array, p: Any) -> Any:
        if not isinstance(p, Rows):
            return x
        return Rows(first_rows(x, p.count), p.count)

    return jax.tree.map(cut_one, tree, pattern)


# Products


def product(pair: Pair) -> jax.Array:
    """The update of a layer without its scaling, sum_i a_i b_i^T.

    Args:
      pair: a [r, ..., in], b [r, ..., out].

    Returns:
      f32[..., in, out].
    """
    return jnp.einsum("r...i,r...o->...io", pair.a, pair.b)


def product_norm(pair: Pair) -> jax.Array:
    """The Frobenius norm of the product.

    It comes from the Gram matrices of the factors; no [in, out] is formed.

    Args:
      pair: a [r, ..., in], b [r, ..., out].

    Returns:
      f32[...].
    """

    def gram(x: jax.Array) -> jax.Array:
        return jnp.einsum("r...i,s...i->...rs", x, x)

    grams = gram(pair.a) * gram(pair.b)
    square = jnp.sum(grams, axis=(-2, -1))
    return jnp.sqrt(jnp.maximum(square, 0.0))


def refuse_magnitudes(delta: Tree) -> None:
    """Refuses pairs of DoRA, whose layers rescale the kernel beside which they stand.

    A rule that aggregates products is exact for kernels W + s A B only.

    Args:
      delta: the trainable tree.

    Raises:
      ValueError: a layer has a magnitude beside its pair.
    """
    leaves, _ = leaves_by_path(delta)
    found = sorted(path for path in leaves if path.rpartition(".")[2] == "magnitude")
    if found:
        raise ValueError(
            "this rule aggregates products A B, which are not what DoRA adds to a "
            f"kernel: the delta has {found[0]!r}; take peft.lora, or fedit for peft.dora"
        )
