"""Reductions over a cohort: sums, and the dearer kind that keeps every upload."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_fm.types import Reduce, Setting, Stack, Tree


def weighted_mean() -> Reduce:
    """sum_k weight_k * sent_k / sum_k weight_k; zero if nobody came."""

    def lift(server, sent, weight):
        return jax.tree.map(lambda x: weight * x, sent), jnp.asarray(
            weight, jnp.float32
        )

    def finish(total, setting):
        tree, weight = total
        return jax.tree.map(lambda x: x / jnp.where(weight > 0, weight, 1.0), tree)

    return Reduce(lift=lift, finish=finish, shows_nan=True)


def stack(finish: Callable[[Stack, Setting], Tree]) -> Reduce:
    """Keeps every upload: `finish(Stack((sent, weights), active, ids), setting)`.

    For medians and the like.

    Needs memory for the whole cohort's uploads, where a sum needs it for one.
    """
    return Reduce(
        lift=lambda server, sent, weight: (sent, jnp.asarray(weight, jnp.float32)),
        finish=finish,
        keep=True,
    )
