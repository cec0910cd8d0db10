"""What a rule is: one message made of a cohort's, some of which may lie."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.types import Tree


class Uploads(NamedTuple):
    """The uploads of a cohort, as a rule sees them.

    Attributes:
      values: f32 leaves [C, ...], zeros where not accepted.
      accepted: bool[C], arrived and finite; m of them.
      weights: f32[C], 0 where not accepted, else 1 unless weights are asked for.
    """

    values: Tree
    accepted: jax.Array
    weights: jax.Array


class Reduced(NamedTuple):
    """What a rule makes of a cohort.

    Attributes:
      value: f32 leaves [...].
      state: of the rule, for the next round.
      metrics: {name: f32[]}; None for none.
    """

    value: Tree
    state: Any = ()
    metrics: dict[str, jax.Array] | None = None


def _no_state(message: Tree) -> tuple:
    """The state of rules that keep nothing."""
    return ()


class Rule(NamedTuple):
    """A robust reduction, pure.

    Attributes:
      reduce: `(uploads, state, reference) -> Reduced`; the reference is the update on
        the server's own data, None unless the rule has a `root`.
      init: `message -> state`, of a message of zeros.
      coefficients: `(gram f32[C, C], uploads) -> f32[C]`, the c_k, summing to 1, of
        rules whose value is sum_k c_k x_k and which know uploads by their distances
        alone, told by inner products around any common point: such rules act on
        products of low-rank factors, too. None for others.
      takes_weights: whether clients may count by their weights.
      root: `RootData` of a rule that compares with an update of the server's own.
    """

    reduce: Callable[[Uploads, Any, Any], Reduced]
    init: Callable[[Tree], Any] = _no_state
    coefficients: Callable[[jax.Array, Uploads], jax.Array] | None = None
    takes_weights: bool = False
    root: Any = None


def count_of(accepted: jax.Array) -> jax.Array:
    """i32[]: m, how many uploads were accepted.

    Args:
      accepted: bool[C].
    """
    return jnp.sum(accepted, dtype=jnp.int32)
