"""LotteryFL's tickets: when a client prunes, and what it keeps.

Li, Sun, Wang, Duan, Li, Chen, Li, 2020, arXiv 2008.03371.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.local import LocalTraining
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.passes import loss_over
from fedjax_fm.sparsity import (
    Layers,
    iterated_counts,
    magnitude,
    ranked_within,
    top_of_layers,
)
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import ClientData, Tree


class Ticket(NamedTuple):
    """What a client keeps.

    Attributes:
      masks: m_k, bool by the dotted path of a pruned leaf.
      level: i32[], how often it has pruned.
    """

    masks: Flat
    level: jax.Array


class LotteryFL(NamedTuple):
    """The hyper-parameters of `lotteryfl`, checked."""

    local: LocalTraining
    layers: Layers
    rate: float  # p
    levels: int  # prunings until r is left
    score: str
    threshold: float


def levels_to(rate: float, target: float) -> int:
    """The first j for which (1 - p)^j is the target or less.

    Args:
      rate: p.
      target: share of the entries.
    """
    levels, left = 0, 1.0
    while left > target:
        levels, left = levels + 1, left * (1 - rate)
    return levels


def may_prune(
    method: LotteryFL,
    start: Tree,
    backbone: Tree,
    ticket: Ticket,
    data: ClientData,
    *,
    key: jax.Array,
) -> jax.Array:
    """bool[]: its score is above the threshold, and more than the target is left.

    Args:
      method: the hyper-parameters.
      start: the client's model.
      backbone: what is frozen.
      ticket: the client's.
      data: the client's.
      key: the client's.

    Raises:
      ValueError: the task has no such metric.
    """
    own = stream(key, Stream.WHOLE_PASS)
    found = loss_over(method.local.task, start, backbone, data, own)
    if method.score not in found:
        raise ValueError(
            f"the task has no metric score={method.score!r}, it has {sorted(found)}"
        )
    value, count = found[method.score]
    is_good = value / jnp.maximum(count, 1e-30) > method.threshold
    return is_good & (count > 0) & (ticket.level < method.levels)


def smaller(method: LotteryFL, start: Tree, ticket: Ticket) -> Flat:
    """The largest of what a ticket keeps, of each layer.

    Args:
      method: the hyper-parameters.
      start: the client's model.
      ticket: the client's.
    """
    weights = method.layers.weights(start)
    level = jnp.minimum(ticket.level + 1, method.levels)

    def count(name, leaf):
        _, n = method.layers.rows(name, leaf)
        left = iterated_counts(method.rate, n, method.levels)
        return jnp.array(left, jnp.int32)[level]

    counts = {name: count(name, leaf) for name, leaf in weights.items()}
    scores = ranked_within(magnitude(weights), ticket.masks)
    return top_of_layers(scores, counts, method.layers)
