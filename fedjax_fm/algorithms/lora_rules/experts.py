"""Experts and their routers in a delta of `peft.lora_experts`.

Experts lie first here, A [M, ..., in, r] and B [M, ..., r, out], as a `Pair`.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.algorithms.lora_rules.factors import (
    Pair,
    child,
    from_leaves,
    leaves_by_path,
    take,
)
from fedjax_fm.types import Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Experts:
    """A delta, taken apart.

    Attributes:
      pairs: by layer, all experts.
      routers: by layer, f32[..., in, 2 M - 1].
      rest: all other leaves, by path.
      form: structure and paths of the delta.
    """

    pairs: dict[str, Pair]
    routers: dict[str, Any]
    rest: dict[str, Any]
    form: Hashable = dataclasses.field(metadata={"static": True})


class Own(NamedTuple):
    """What a client trains, or what it changed of it.

    Attributes:
      pairs: its own expert, a [..., in, r] and b [..., r, out].
      routers: its cluster's.
      rest: all other leaves.
    """

    pairs: dict[str, Pair]
    routers: dict[str, Any]
    rest: dict[str, Any]


def split_experts(delta: Tree) -> Experts:
    """Finds experts and routers by the names `expert_a`, `expert_b` and `router`.

    Args:
      delta: the trainable tree.

    Returns:
      Its parts.

    Raises:
      ValueError: there are none, or one of the three lacks another.
    """
    leaves, form = leaves_by_path(delta)
    rest = dict(leaves)
    a, b, routers = (take(rest, name) for name in ("expert_a", "expert_b", "router"))
    if not a or not a.keys() == b.keys() == routers.keys():
        raise ValueError(
            "expected leaves expert_a, expert_b and router in the delta "
            f"(peft.lora_experts makes them), got {sorted(leaves)}"
        )
    pairs = {}
    for layer in a:
        experts_of_a = jnp.moveaxis(a[layer], -3, 0)
        pairs[layer] = Pair(experts_of_a, jnp.moveaxis(b[layer], -3, 0))
    return Experts(pairs=pairs, routers=routers, rest=rest, form=form)


def join_experts(experts: Experts) -> Tree:
    """The inverse of `split_experts`.

    Args:
      experts: all parts.

    Returns:
      The delta.
    """
    leaves = dict(experts.rest)
    for layer, (a, b) in experts.pairs.items():
        leaves[child(layer, "expert_a")] = jnp.moveaxis(a, 0, -3)
        leaves[child(layer, "expert_b")] = jnp.moveaxis(b, 0, -3)
        leaves[child(layer, "router")] = experts.routers[layer]
    return from_leaves(leaves, experts.form)


def n_experts(experts: Experts) -> int:
    """M.

    Args:
      experts: of a delta.
    """
    return len(next(iter(experts.pairs.values())).a)


def own_first(experts: Experts, cluster: jax.Array) -> Experts:
    """The experts as a client of a cluster has them: its own first.

    Args:
      experts: by number of their clusters.
      cluster: i32[].

    Returns:
      The same parts; the others follow by their numbers.
    """
    number = jnp.arange(n_experts(experts))
    order = jnp.argsort(jnp.where(number == cluster, -1, number))
    pairs = {}
    for layer, (a, b) in experts.pairs.items():
        pairs[layer] = Pair(a[order], b[order])
    return dataclasses.replace(experts, pairs=pairs)


def own_of(experts: Experts) -> Own:
    """What a client trains of its view.

    Args:
      experts: its own first.

    Returns:
      The first expert, the router, and the rest.
    """
    pairs = {}
    for layer, (a, b) in experts.pairs.items():
        pairs[layer] = Pair(a[0], b[0])
    return Own(pairs, experts.routers, experts.rest)


def with_own(experts: Experts, own: Own) -> Experts:
    """A client's view with other values for what it trains.

    Args:
      experts: its own first.
      own: as `own_of` gives it.

    Returns:
      The view.
    """
    pairs = {}
    for layer, (a, b) in experts.pairs.items():
        mine = own.pairs[layer]
        pairs[layer] = Pair(a.at[0].set(mine.a), b.at[0].set(mine.b))
    return dataclasses.replace(experts, pairs=pairs, routers=own.routers, rest=own.rest)


def expert_start(
    delta: Tree, deltas: Sequence[Tree], labels: Sequence[int] | np.ndarray
) -> Tree:
    """Experts that are the means of their clusters' adapters.

    Args:
      delta: of `peft.lora_experts`, with as many experts as there are clusters.
      deltas: of N clients, of `peft.lora` on the same layers and of the same rank, as
        each has trained them alone.
      labels: i32[N], the cluster of every client, from 0 on: of `cluster_adapters`.

    Returns:
      A tree like `delta` with these experts; other leaves that the adapters have too, a
      classifier, are the mean over all clients. Every client counts as one.

    Raises:
      ValueError: not one label a delta, numbers of clusters that are not those of the
        experts, or layers and ranks that differ.

    References:
      Wang et al. 2025, arXiv 2509.15087.

    Example:
      >>> import jax.numpy as jnp
      >>> delta = {
      ...     "expert_a": jnp.zeros((2, 3, 1)), "expert_b": jnp.zeros((2, 1, 2)),
      ...     "router": jnp.zeros((3, 3)),
      ... }
      >>> def adapter(x):
      ...     return {"lora_a": jnp.full((3, 1), x), "lora_b": jnp.full((1, 2), x)}
      >>> start = expert_start(delta, [adapter(x) for x in (1.0, 5.0, 3.0)], [0, 1, 0])
      >>> start["expert_b"][:, 0, 0].tolist()
      [2.0, 5.0]
    """
    labels = np.asarray(labels)
    experts = split_experts(delta)
    wanted = list(range(n_experts(experts)))
    if len(labels) != len(deltas) or sorted(set(labels.tolist())) != wanted:
        raise ValueError(
            f"expected a label of {wanted} for each of {len(deltas)} clients, every "
            f"one of them given, got labels={labels.tolist()}"
        )
    leaves = [leaves_by_path(one)[0] for one in deltas]
    pairs = {}
    for layer, (a, b) in experts.pairs.items():
        pairs[layer] = Pair(
            _means(leaves, child(layer, "lora_a"), labels, a),
            _means(leaves, child(layer, "lora_b"), labels, b),
        )
    rest = dict(experts.rest)
    for path in rest.keys() & leaves[0].keys():
        rest[path] = jnp.mean(jnp.stack([one[path] for one in leaves]), axis=0)
    return join_experts(dataclasses.replace(experts, pairs=pairs, rest=rest))


def _means(
    leaves: list[dict[str, Any]], path: str, labels: np.ndarray, like: jax.Array
) -> jax.Array:
    """The mean of every cluster, [M, ...]."""
    if any(path not in one for one in leaves):
        raise ValueError(f"expected {path!r} in every client's delta")
    stacked = jnp.stack([jnp.asarray(one[path]) for one in leaves])
    if stacked.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"expected {path!r} in the shape of an expert, {list(like.shape[1:])}, got "
            f"{list(stacked.shape[1:])}"
        )
    means = [jnp.mean(stacked[labels == j], axis=0) for j in range(len(like))]
    return jnp.stack(means)
