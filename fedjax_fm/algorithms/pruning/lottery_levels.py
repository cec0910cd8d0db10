"""Lottery tickets: when a level ends, what it prunes, and where it rewinds to.

Frankle and Carbin 2019, arXiv 1803.03635; Frankle et al. 2019, arXiv 1903.01611.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.averaging import Averaging
from fedjax_fm.algorithms.parts import in_f32
from fedjax_fm.algorithms.pruning.parts import PrunedState
from fedjax_fm.sparsity import (
    Layers,
    iterated_counts,
    magnitude,
    masked,
    ranked_within,
    top_of_all,
    top_of_layers,
)
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Tree


class Rewinding(NamedTuple):
    """What `PrunedState.own` is.

    Attributes:
      start: w_k, to which the kept weights return.
      level: i32[], prunings done.
    """

    start: Tree
    level: jax.Array


class Lottery(NamedTuple):
    """The hyper-parameters of `lottery_ticket`, checked."""

    average: Averaging
    layers: Layers
    levels: int
    rounds: int  # of a level
    rate: float  # p
    output: Layers | None  # of the leaves that are pruned half as fast
    scope: str
    rewind_to: int  # k
    redraw: Callable[[Tree, jax.Array], Tree] | None


def next_state(method: Lottery, state: PrunedState, key: jax.Array) -> PrunedState:
    """`Rule.next`: keeps w_k when it is there; at the end of a level prunes and rewinds.

    Args:
      method: the hyper-parameters.
      state: after the server's step.
      key: of `redraw`.
    """
    is_start = state.round == method.rewind_to
    start = trees.select(is_start, state.delta, state.own.start)
    state = state._replace(own=state.own._replace(start=start))
    is_end = state.round == (state.own.level + 1) * method.rounds
    is_due = is_end & (state.own.level < method.levels)
    rewind = partial(_rewound, method, state, key)
    return jax.lax.cond(is_due, rewind, lambda: state)


def _rewound(method: Lottery, state: PrunedState, key: jax.Array) -> PrunedState:
    """The state with fewer weights, which stand where they stood."""
    level = state.own.level + 1
    masks = _smaller(method, state, level)
    start = state.own.start
    if method.redraw is not None:
        start = method.redraw(start, key)
        if problem := trees.difference(state.delta, start):
            raise ValueError(f"redraw makes another tree than delta: {problem}")
    delta = masked(start, masks)
    return state._replace(
        delta=delta,
        masks=masks,
        optimizer=method.average.optimizer.init(in_f32(delta)),
        own=state.own._replace(level=level),
    )


def _smaller(method: Lottery, state: PrunedState, level: jax.Array) -> Flat:
    """The masks of a level: the largest of what is kept."""
    weights = method.layers.weights(state.delta)
    scores = ranked_within(magnitude(weights), state.masks)
    if method.scope == "global":
        n = sum(leaf.size for leaf in weights.values())
        return top_of_all(scores, _count(method, method.rate, n, level), method.layers)

    def count(name, leaf):
        slow = method.output is not None and method.output.is_pruned(name, leaf)
        _, n = method.layers.rows(name, leaf)
        return _count(method, method.rate / 2 if slow else method.rate, n, level)

    counts = {name: count(name, leaf) for name, leaf in weights.items()}
    return top_of_layers(scores, counts, method.layers)


def _count(method: Lottery, rate: float, n: int, level: Any) -> jax.Array:
    """i32[]: entries of n that are left after some levels, (1 - p)^level n, rounded."""
    return jnp.array(iterated_counts(rate, n, method.levels), jnp.int32)[level]
