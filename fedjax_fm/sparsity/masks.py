"""Masks, {dotted path of a pruned leaf: bool}: how they are made of scores, and used."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.kernels import top_k_cut
from fedjax_fm.kernels.counting import LARGEST_KEY
from fedjax_fm.kernels.threshold_search import selected
from fedjax_fm.sparsity.layers import Flat, Layers
from fedjax_fm.types import Tree

SCOPES = ("layer", "global")
_INFINITY = 0x7F800000  # the bits of the largest magnitude


def masked(tree: Tree, masks: Flat) -> Tree:
    """The tree with zeros where a mask is False; leaves without a mask stay.

    Masked, not faster: the arrays keep their shapes.

    Args:
      tree: arrays; what is masked out may be NaN.
      masks: bool, by the dotted path of a leaf.

    Example:
      >>> tree = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
      >>> masked(tree, {"w": jnp.array([[True, False]])})["w"].tolist()
      [[1.0, 0.0]]
    """

    def one(path, leaf):
        mask = masks.get(trees.path_of(path))
        return leaf if mask is None else jnp.where(mask, leaf, jnp.zeros_like(leaf))

    return jax.tree.map_with_path(one, tree)


def full_masks(weights: Flat) -> Flat:
    """Masks that keep every entry.

    Args:
      weights: of `Layers.weights`, or their shapes.
    """
    return {name: jnp.ones(leaf.shape, bool) for name, leaf in weights.items()}


def nonzero_masks(weights: Flat) -> Flat:
    """Masks of the entries that are not zero: those of a model that was pruned.

    Args:
      weights: of `Layers.weights`.

    Example:
      >>> nonzero_masks({"w": jnp.array([0.0, 2.0])})["w"].tolist()
      [False, True]
    """
    return {name: leaf != 0 for name, leaf in weights.items()}


def kept_count(density: Any, n: int) -> Any:
    """How many of n entries stay: n less round((1 - density) n), at least 1.

    Halves are rounded up, so that fewer stay. A layer never dies: it keeps one entry.

    Args:
      density: share that stays, 0 < density <= 1; may be traced, and is then good to
        f32.
      n: entries, at least 1.

    Returns:
      int, or i32[] of a traced density.

    Raises:
      TypeError, ValueError: a density out of its bounds, or no entry.

    Example:
      >>> kept_count(0.25, 10), kept_count(0.001, 10)
      (2, 1)
    """
    check_density("density", density)
    checks.whole("n", n, least=1)
    if isinstance(density, jax.Array):
        n_zeros = jnp.floor((1 - density) * n + 0.5).astype(jnp.int32)
        return jnp.maximum(n - n_zeros, 1)
    n_zeros = (1 - Fraction(str(density))) * n + Fraction(1, 2)
    return max(n - int(n_zeros), 1)


def iterated_counts(rate: float, n: int, times: int) -> list[int]:
    """How many of n entries are left after 0, 1, ... prunings of the same rate.

        (1 - p)^i n, rounded as by `kept_count`

    Args:
      rate: p, share of the kept entries that each pruning drops, 0 < p < 1.
      n: entries, at least 1.
      times: prunings.

    Returns:
      times + 1 numbers.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    Example:
      >>> iterated_counts(0.2, 100, 3)
      [100, 80, 64, 51]
    """
    checks.real("rate", rate, above=0, below=1)
    checks.whole("times", times, least=0)
    kept = 1 - Fraction(str(rate))
    return [kept_count(kept**i, n) for i in range(times + 1)]


def check_density(name: str, density: Any) -> Any:
    """`density`, if it is a share above 0 and at most 1.

    Args:
      name: what the caller calls it, for the message.
      density: what should be one.

    Raises:
      TypeError, ValueError: it is none.
    """
    return checks.real(name, density, above=0, most=1)


def top_masks(
    scores: Flat,
    density: Any,
    layers: Layers = Layers(),  # noqa: B008
    *,
    scope: str = "layer",
    within: Flat | None = None,
) -> Flat:
    """Keeps the entries of the largest scores.

    `kept_count(density, n)` of them: of each layer, or of all together by one
    threshold. Scores count by their sign, too; ties go to the lowest index and the
    first leaf, NaN to the last place. A layer that one threshold would empty keeps its
    best entry, so that it never dies and at most the wanted number is removed.

    Args:
      scores: floats by path.
      density: share that stays, 0 < density <= 1; may be traced.
      layers: says which axes count layers.
      scope: "layer" or "global".
      within: masks; what they leave out is kept only if nothing else is left. None: all
        entries are ranked.

    Returns:
      Masks, by the same paths.

    Raises:
      TypeError, ValueError: a density out of its bounds, or another scope.

    References:
      Han et al. 2015, arXiv 1506.02626; Frankle and Carbin 2019, arXiv 1803.03635.

    Example:
      >>> scores = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([5.0, 4.0])}
      >>> [mask.tolist() for mask in top_masks(scores, 0.5).values()]
      [[True, False], [True, False]]
      >>> [mask.tolist() for mask in top_masks(scores, 0.5, scope="global").values()]
      [[True, False], [True, True]]
    """
    check_density("density", density)
    checks.choice("scope", scope, SCOPES)
    ranked = scores if within is None else ranked_within(scores, within)
    sizes = {name: layers.rows(name, leaf)[1] for name, leaf in ranked.items()}
    if scope == "layer":
        counts = {name: kept_count(density, n) for name, n in sizes.items()}
        return top_of_layers(ranked, counts, layers)
    count = kept_count(density, sum(leaf.size for leaf in ranked.values()))
    return top_of_all(ranked, count, layers)


def ranked_within(scores: Flat, masks: Flat) -> Flat:
    """Scores that rank what masks leave out behind all that they keep.

    Args:
      scores: floats by path.
      masks: bool, by the same paths.
    """
    return {
        name: jnp.where(masks[name], leaf, -jnp.inf) for name, leaf in scores.items()
    }


def top_of_layers(scores: Flat, counts: dict[str, Any], layers: Layers) -> Flat:
    """Keeps the best `counts[path]` entries of each layer.

    Args:
      scores: floats by path.
      counts: int or i32[] by path: entries of each of the leaf's layers; i32[layers]
        where they differ.
      layers: says which axes count layers.
    """

    def of_row(row, count):
        return top_of_vectors((row,), count)[0]

    def one(name, leaf):
        rows = leaf.reshape(layers.rows(name, leaf))
        count = jnp.broadcast_to(jnp.asarray(counts[name]), rows.shape[:1])
        return jax.vmap(of_row)(rows, count).reshape(leaf.shape)

    return {name: one(name, leaf) for name, leaf in scores.items()}


def top_of_all(scores: Flat, count: Any, layers: Layers) -> Flat:
    """Keeps the best `count` entries of all leaves, and one of each layer at least.

    Args:
      scores: floats by path.
      count: int or i32[].
      layers: says which axes count layers.
    """
    vectors = tuple(leaf.reshape(-1) for leaf in scores.values())
    found = top_of_vectors(vectors, count)
    masks = {
        name: mask.reshape(leaf.shape)
        for (name, leaf), mask in zip(scores.items(), found, strict=True)
    }
    return with_one_each(masks, scores, layers)


def with_one_each(masks: Flat, scores: Flat, layers: Layers) -> Flat:
    """Masks in which a layer that kept nothing keeps its best entry.

    Args:
      masks: bool by path.
      scores: floats, by the same paths.
      layers: says which axes count layers.
    """
    best = top_of_layers(scores, dict.fromkeys(scores, 1), layers)

    def one(name, mask):
        shape = layers.rows(name, mask)
        rows = mask.reshape(shape)
        is_dead = ~jnp.any(rows, axis=1, keepdims=True)
        alive = rows | (is_dead & best[name].reshape(shape))
        return alive.reshape(mask.shape)

    return {name: one(name, mask) for name, mask in masks.items()}


def top_of_vectors(vectors: tuple[jax.Array, ...], k: Any) -> tuple[jax.Array, ...]:
    """Marks the k largest entries of some vectors, by value, without a sort.

    Either the positive entries suffice and their magnitudes decide, or all of them stay
    and the others are ranked by how little they lie below zero.

    Args:
      vectors: floats, [n] each.
      k: int or i32[]; may be traced.

    Returns:
      bool[n] for each; ties go to the lowest index and the first vector.
    """
    pairs = [_sign_and_key(x) for x in vectors]
    n_positive = sum(jnp.sum(above, dtype=jnp.int32) for above, _ in pairs)
    suffice = jnp.asarray(k) <= n_positive
    keys = tuple(_ranked(suffice, above, key) for above, key in pairs)
    cut = top_k_cut(keys, jnp.where(suffice, k, k - n_positive))

    def mark(above, key, last):
        found = selected(key, cut.key, last)
        return jnp.where(suffice, found, found | above)

    return tuple(
        mark(above, key, last)
        for (above, _), key, last in zip(pairs, keys, cut.last, strict=True)
    )


def _sign_and_key(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(whether an entry is above zero, its magnitude as u32); NaN is the lowest.

    By bits: XLA's comparisons on CPU take denormals for zero.
    """
    x = jnp.asarray(x, jnp.float32)
    x = jnp.where(jnp.isnan(x), -jnp.inf, x)
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
    key = words & jnp.uint32(LARGEST_KEY)
    return (words == key) & (key > 0), key


def _ranked(suffice: jax.Array, above: jax.Array, key: jax.Array) -> jax.Array:
    """Keys of the entries that are still to be chosen; 0 for the others."""
    of_positive = jnp.where(above, key, 0)
    of_others = jnp.where(above, 0, jnp.uint32(_INFINITY + 1) - key)
    return jnp.where(suffice, of_positive, of_others)


def densities(masks: Flat) -> dict[str, jax.Array]:
    """The share of entries that is kept, of each leaf and of all: metrics.

    Args:
      masks: bool by path.

    Returns:
      {"density": f32[] of all, "density PATH": f32[] of a leaf, ...}.

    Example:
      >>> masks = {"w": jnp.array([True, False]), "v": jnp.array([True, True])}
      >>> {name: float(share) for name, share in densities(masks).items()}
      {'density': 0.75, 'density w': 0.5, 'density v': 1.0}
    """
    counts = {name: jnp.sum(mask, dtype=jnp.int32) for name, mask in masks.items()}
    size = sum(mask.size for mask in masks.values())
    total = jnp.sum(jnp.stack(list(counts.values())))
    each = {f"density {name}": n / masks[name].size for name, n in counts.items()}
    shares = {"density": total / size, **each}
    return {name: jnp.float32(share) for name, share in shares.items()}
