"""The factor tree: which leaves of a delta are LoRA's pairs, how a rank cuts them, and
what they multiply to.

Factors lie rank first here, a [r, ..., in] and b [r, ..., out]: a client's rank is a
number of leading rows, stacking is concatenation, and what travels is `Rows`. The
update of a layer is sum_i a_i b_i^T, [..., in, out], times the layer's own scaling,
which is one for all ranks (alpha_k in proportion to r_k, as FLoRA's code has it).
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.types import Rows, Setting, Tree

Part = Literal["a", "b", "ab"]
Ranks = Sequence[int] | np.ndarray | None


class Pair(NamedTuple):
    """The factors of one layer; () for one that is left out."""

    a: Any  # [r, ..., in]
    b: Any  # [r, ..., out]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """A delta, taken apart.

    Attributes:
      pairs: by the dotted path of the adapted layer.
      rest: all other leaves (a classifier), by path; averaged as in FedAvg.
      form: structure and paths of the delta.
    """

    pairs: dict[str, Any]
    rest: dict[str, Any]
    form: Hashable = dataclasses.field(metadata={"static": True})


def leaves_of(delta: Tree) -> tuple[dict[str, Any], Hashable]:
    """({path: leaf}, form); `rebuilt` is the inverse."""
    found, structure = jax.tree.flatten_with_path(delta)
    leaves = {trees.path_of(path): leaf for path, leaf in found}
    return leaves, (structure, tuple(leaves))


def rebuilt(leaves: dict[str, Any], form: Any) -> Tree:
    """The tree of that form."""
    structure, names = form
    return jax.tree.unflatten(structure, [leaves[name] for name in names])


def child(layer: str, name: str) -> str:
    """Dotted path of something below `layer`; the root's own path is ''."""
    return f"{layer}.{name}" if layer else name


def split(delta: Tree) -> Factors:
    """Finds the pairs by name: `lora_a` [..., in, r] beside `lora_b` [..., r, out]."""
    leaves, form = leaves_of(delta)
    names = {
        kind: {n.rpartition(".")[0] for n in leaves if n.rpartition(".")[2] == kind}
        for kind in _AXES
    }
    if not names["lora_a"] or names["lora_a"] != names["lora_b"]:
        raise ValueError(
            f"expected pairs of leaves lora_a and lora_b in the delta, got {sorted(leaves)}"
        )

    def first(layer, kind):
        return jnp.moveaxis(leaves.pop(child(layer, kind)), _AXES[kind], 0)

    pairs = {
        layer: Pair(first(layer, "lora_a"), first(layer, "lora_b"))
        for layer in sorted(names["lora_a"])
    }
    return Factors(pairs, leaves, form)


_AXES = {"lora_a": -1, "lora_b": -2}  # where the rank is


def join(factors: Factors) -> Tree:
    """The inverse of `split`."""
    leaves = dict(factors.rest)
    for layer, pair in factors.pairs.items():
        for kind, rows in zip(_AXES, pair, strict=True):
            leaves[child(layer, kind)] = jnp.moveaxis(rows, 0, _AXES[kind])
    return rebuilt(leaves, factors.form)


# Parts


def only(factors: Factors, part: Part) -> Factors:
    """One factor of every pair, and the rest; () in place of the other factor."""

    def keep(pair):
        return Pair(pair.a if "a" in part else (), pair.b if "b" in part else ())

    return dataclasses.replace(
        factors, pairs={layer: keep(pair) for layer, pair in factors.pairs.items()}
    )


def filled(factors: Factors, pairs: dict[str, Pair]) -> Factors:
    """What `factors` leaves out, from `pairs`."""

    def left_out(x):
        return isinstance(x, tuple) and not x  # Rows are tuples too, but not empty ones

    def fill(pair, other):
        return Pair(
            *(y if left_out(x) else x for x, y in zip(pair, other, strict=True))
        )

    if not pairs:
        return factors
    return dataclasses.replace(
        factors,
        pairs={
            layer: fill(pair, pairs[layer]) for layer, pair in factors.pairs.items()
        },
    )


# Ranks


def checked_ranks(ranks: Ranks) -> np.ndarray | None:
    """i32[clients], the rank of each; None means that all have the delta's."""
    if ranks is None:
        return None
    try:
        checked = np.asarray(ranks)
    except ValueError:  # lists of several lengths
        checked = np.zeros(())
    whole = (
        checked.ndim == 1
        and len(checked) > 0
        and np.issubdtype(checked.dtype, np.integer)
    )
    if not whole or checked.min() < 1 or checked.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"expected ranks to be one whole number >= 1 a client, got ranks={ranks}"
        )
    return checked.astype(np.int32)


def check_fit(ranks: np.ndarray | None, largest: int, setting: Setting) -> None:
    """Refuses ranks that the delta or the population does not have."""
    if ranks is None:
        return
    if ranks.max() > largest:
        raise ValueError(
            f"a client has rank {ranks.max()}, but the largest pair of the delta has rank {largest}"
        )
    if len(ranks) < setting.n_clients:
        raise ValueError(
            f"expected a rank for each of {setting.n_clients} clients, got {len(ranks)}"
        )


def largest_rank(factors: Factors) -> int:
    """R of the largest pair."""
    return max(pair.a.shape[0] for pair in factors.pairs.values())


def rank_of(ranks: np.ndarray | None, client: jax.Array) -> jax.Array | None:
    """i32[], None where all have the same."""
    return None if ranks is None else jnp.asarray(ranks)[client]


def first_rows(x: jax.Array, count: jax.Array) -> jax.Array:
    """X with all rows past `count` set to zero."""
    real = (jnp.arange(x.shape[0]) < count).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(real, x, 0)


def cut(tree: Tree, rank: jax.Array | None) -> Tree:
    """Every array as the `Rows` of its first `rank` rows; as it is for None."""
    if rank is None:
        return tree

    def one(x: jax.Array) -> Rows:
        count = jnp.minimum(rank, x.shape[0]).astype(jnp.int32)
        return Rows(first_rows(x, count), count)

    return jax.tree.map(one, tree)


def cut_pairs(factors: Factors, rank: jax.Array | None) -> Factors:
    """The pairs cut to a rank; the rest stays whole."""
    return dataclasses.replace(factors, pairs=cut(factors.pairs, rank))


def is_rows(node: Any) -> bool:
    """Whether a node of a tree is `Rows`."""
    return isinstance(node, Rows)


def plain(tree: Tree) -> Tree:
    """`Rows` as arrays, zero beyond their height."""
    return jax.tree.map(lambda x: x.values if is_rows(x) else x, tree, is_leaf=is_rows)


def like(tree: Tree, pattern: Tree) -> Tree:
    """Arrays cut as `pattern` is cut."""

    def cut_one(x, p):
        return Rows(first_rows(x, p.count), p.count) if is_rows(p) else x

    return jax.tree.map(cut_one, tree, pattern)


def returned(start: Factors, change: Factors) -> Factors:
    """A client's factors after its work, cut as its upload is.

    The rows that it started from plus what it changed.
    """
    return like(trees.add(start, plain(change)), change)


# Products


def product(pair: Pair) -> jax.Array:
    """[..., in, out]: sum over the rows of a_i b_i^T."""
    return jnp.einsum("r...i,r...o->...io", pair.a, pair.b)


def product_norm(pair: Pair) -> jax.Array:
    """f32[...]: Frobenius norm of the product, from the factors' Gram matrices.

    Nothing of [in, out] is formed.
    """

    def gram(x):
        return jnp.einsum("r...i,s...i->...rs", x, x)

    return jnp.sqrt(
        jnp.maximum(jnp.sum(gram(pair.a) * gram(pair.b), axis=(-2, -1)), 0.0)
    )


def map_pairs(f: Callable[..., Any], *factors: Factors) -> dict[str, Any]:
    """{layer: f(pair, ...)}."""
    return {
        layer: f(*(one.pairs[layer] for one in factors)) for layer in factors[0].pairs
    }
