"""All factors of a cohort, for rules that stack them instead of summing them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    along_rows,
    as_arrays,
)
from fedjax_fm.algorithms.reduce import mean_of, stack
from fedjax_fm.types import Reduce, Rows, Setting, Stack, Tree


class CohortFactors(NamedTuple):
    """The factors with which the clients of a cohort ended.

    Attributes:
      factors: leaves [C, r, ...], zero beyond each client's rank; rest [C, ...].
      heights: by layer, i32[C], each client's rows; 0 where no upload arrived.
      shares: f32[C], p_k.
      arrived: bool[], whether any upload arrived.
    """

    factors: Factors
    heights: dict[str, jax.Array]
    shares: jax.Array
    arrived: jax.Array

    def mean(self, tree: Tree) -> Tree:
        """The mean over the cohort, sum_k p_k x_k.

        Args:
          tree: leaves [C, ...].

        Returns:
          Leaves [...].
        """
        return jax.tree.map(lambda x: jnp.tensordot(self.shares, x, axes=1), tree)

    def has_row(self, layer: str) -> jax.Array:
        """Which rows each client has.

        Args:
          layer: its dotted path.

        Returns:
          bool[C, r].
        """
        n_rows = self.factors.pairs[layer].a.shape[1]
        return jnp.arange(n_rows) < self.heights[layer][:, None]


def all_of_cohort() -> Reduce:
    """Keeps every client's factors; the value is `CohortFactors`."""
    return stack(_cohort_factors)


def products_of_cohort() -> Reduce:
    """`all_of_cohort`, for rules whose update is sum_k shares_k b_k a_k, however it is sent.

    Such a rule takes other shares in the place of the weights', as `robust.robust` makes
    them.
    """
    return stack(_factors_of_products)


def _factors_of_products(found: Stack, setting: Setting) -> CohortFactors:
    return _cohort_factors(found, setting)


def _cohort_factors(found: Stack, setting: Setting) -> CohortFactors:
    (factors, weights), active = found.values, found.active
    weights = jnp.where(active, weights, 0.0)
    sum_of_weights = jnp.sum(weights)

    def height(a: Any) -> jax.Array:
        return jnp.where(active, a.count if isinstance(a, Rows) else a.shape[1], 0)

    return CohortFactors(
        factors=as_arrays(factors),
        heights={layer: height(pair.a) for layer, pair in factors.pairs.items()},
        shares=mean_of(weights, sum_of_weights),
        arrived=sum_of_weights > 0,
    )


def weights_of_arrived(found: Stack) -> jax.Array:
    """f32[C]: the weights of a cohort, 0 where no upload arrived.

    Args:
      found: of `kept`, (changes, weights) of each client.
    """
    _, weights = found.values
    return jnp.where(found.active, weights, 0.0)


def moved_by_mean(weights: jax.Array, old: Tree, changes: Tree) -> Tree:
    """A tree moved by the mean change of a cohort, old + sum_k p_k change_k.

    Args:
      weights: f32[C], n_k; without a weight above 0 nothing moves.
      old: leaves [...].
      changes: leaves [C, ...].
    """
    shares = mean_of(weights, jnp.sum(weights))

    def one(old, change):
        return old + jnp.tensordot(shares, change, axes=1)

    return jax.tree.map(one, old, changes)


def joined_rows(x: jax.Array) -> jax.Array:
    """[C, r, ...] -> [C r, ...]."""
    return x.reshape(-1, *x.shape[2:])


def stacked(shares: jax.Array, pair: Pair) -> Pair:
    """The factors of all clients as one pair, whose product is sum_k shares_k b_k a_k.

    Args:
      shares: f32[C]; they go on a.
      pair: [C, r, ...].

    Returns:
      A pair [C r, ...].
    """
    weighted = along_rows(shares, pair.a) * pair.a
    return Pair(weighted, pair.b).map(joined_rows)
