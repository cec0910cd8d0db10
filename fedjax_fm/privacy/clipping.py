"""Sums of bounded contributions over a fixed denominator: what the sensitivity of DP-FedAvg and DP-FTRL rests on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import trees
from fedjax_fm.types import Reduce, Setting, Tree


def clip(tree: Tree, norm: jax.Array | float) -> tuple[Tree, jax.Array]:
    """(tree * min(1, norm / ||tree||), bool[]: was it within the norm), ||.|| the l2 norm over all leaves.

    Guarantee: the l2 norm of the result is at most `norm`, up to float rounding. A tree that is not finite gives zeros
    and False; an infinite norm leaves finite trees as they are; norm 0 gives zeros.
    """
    finite = trees.all_finite(tree)
    length = optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))
    factor = jnp.where(length > norm, norm / jnp.where(length > 0, length, 1.0), 1.0)
    scaled = jax.tree.map(lambda x: jnp.where(finite, x * factor.astype(x.dtype), 0), tree)
    return scaled, finite & (length <= norm)


class ClippedMean(NamedTuple):
    """What the server gets."""

    mean: Tree
    within: jax.Array  # f32[], clients within the norm over cohort_size
    cohort_size: int


def clipped_mean(norm_of: Callable[[Any], jax.Array | float]) -> Reduce:
    """sum_k clip(sent_k) / cohort_size, the planned one; every client counts the same.

    Clipping comes after decoding: a clip inside the client bounds nothing once a quantiser or error feedback follows.
    The realised number of clients would be a data-dependent denominator: it is never used.

    Args:
      norm_of: `server_state -> clip norm`.

    `finish` gives a `ClippedMean`. Sensitivity to one client joining or leaving: norm / cohort_size for the mean,
    1 / cohort_size for the share.
    """

    def lift(server, sent, weight):
        clipped, within = clip(sent, norm_of(server))
        return clipped, within.astype(jnp.float32)

    def finish(total, setting: Setting):
        mean, within = jax.tree.map(lambda x: x / setting.cohort_size, total)
        return ClippedMean(mean, within, setting.cohort_size)

    return Reduce(lift, finish)
