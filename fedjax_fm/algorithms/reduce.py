"""Reductions over a cohort: sums, and the dearer kind that keeps every upload."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.types import Reduce, Setting, Stack, Tree


def mean_of(total: Tree, weight: jax.Array) -> Tree:
    """The quotient total / weight, and total itself where the weight is 0.

    Args:
      total: sums over a cohort; all zero where no client arrived.
      weight: f32[], the sum of their weights.

    Returns:
      The mean; zeros, not NaN, where no client arrived.
    """
    divisor = jnp.where(weight > 0, weight, 1.0)
    return jax.tree.map(lambda x: x / divisor, total)


def weighted_mean() -> Reduce:
    """The mean over the cohort by weights.

        sum_k weight_k sent_k / sum_k weight_k

    Returns:
      A reduction whose value is the mean; zeros if no client arrived.

    Example:
      >>> reduce = weighted_mean()
      >>> total = jax.tree.map(
      ...     jnp.add,
      ...     reduce.lift((), jnp.array([1.0, 2.0]), 1.0),
      ...     reduce.lift((), jnp.array([5.0, 4.0]), 3.0),
      ... )
      >>> reduce.finish(total, Setting(n_clients=2, cohort_size=2)).tolist()
      [4.0, 3.5]
    """
    return Reduce(lift=_weighted, finish=_mean, shows_nan=True)


def _weighted(server, sent, weight):
    """What a client adds to the sums of a weighted mean."""
    weighted = jax.tree.map(lambda x: weight * x, sent)
    return weighted, jnp.asarray(weight, jnp.float32)


def _mean(total, setting):
    return mean_of(*total)


def total(lift: Callable | None = None) -> Reduce:
    """The sum over the cohort and nothing else.

    Args:
      lift: what a client contributes, `(server_state, sent, weight) -> tree`; None:
        what was sent, and its weight.

    Returns:
      A reduction whose value is the sum; zeros if no client arrived.
    """

    def sent_and_weight(server, sent, weight):
        return sent, weight

    return Reduce(lift=lift or sent_and_weight, finish=_as_it_is)


def nothing() -> Reduce:
    """For exchanges that bring nothing back."""
    return Reduce(lift=lambda server, sent, weight: (), finish=_as_it_is)


def _as_it_is(total, setting):
    return total


def stack(finish: Callable[[Stack, Setting], Tree]) -> Reduce:
    """Keeps every upload, for medians and the like.

    It needs memory for the whole cohort's uploads, where a sum needs it for one.

    Args:
      finish: `(Stack((sent, weights), active, ids), setting) -> value`.

    Returns:
      A reduction whose value is what `finish` makes.
    """

    def lift(server, sent, weight):
        return sent, jnp.asarray(weight, jnp.float32)

    return Reduce(lift=lift, finish=finish, keep=True)


def kept() -> Reduce:
    """Keeps every upload, for servers that have to know whose it is.

    Returns:
      A reduction whose value is `Stack((sent, weights), active, ids)`.
    """

    def finish(found, setting):
        return found

    return stack(finish)


class MeanAndShare(NamedTuple):
    """The value of `mean_and_share`.

    Attributes:
      mean: of what the clients sent.
      share: f32[], those that arrived, as a share of all clients of the population.
    """

    mean: Tree
    share: jax.Array


def mean_and_share() -> Reduce:
    """The plain mean over those who arrived, and their share |S| / N of all clients.

    For what the server keeps as a mean over all N clients: it moves by share * mean.

    Returns:
      A reduction whose value is `MeanAndShare`; zeros if no client arrived.
    """

    def lift(server, sent, weight):
        return sent, jnp.float32(1)

    def finish(total, setting):
        _, count = total
        return MeanAndShare(mean_of(*total), count / setting.n_clients)

    return Reduce(lift=lift, finish=finish, shows_nan=True)
