"""The columns of a batch of preference pairs, and the answers in them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.preferences.log_probs import token_log_probs
from fedjax_fm.tasks.columns import need

FIELDS = ("input_ids", "attention_mask", "labels")
SIDES = ("chosen", "rejected")
# chosen_input_ids, ..., rejected_labels, all i32[B, T].
COLUMNS = tuple(f"{side}_{field}" for side in SIDES for field in FIELDS)
# Stored log-probabilities of the reference, f32[B, T-1].
STORED = tuple(f"{side}_reference" for side in SIDES)


class Answers(NamedTuple):
    """Log-probabilities of both answers of B pairs.

    Attributes:
      chosen: f32[B, T-1], of each token; 0 where it does not count.
      rejected: f32[B, T-1].
      chosen_counts: bool[B, T-1], tokens of the answer.
      rejected_counts: bool[B, T-1].
    """

    chosen: jax.Array
    rejected: jax.Array
    chosen_counts: jax.Array
    rejected_counts: jax.Array


def both_sides(batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    """The chosen rows above the rejected ones, so that one pass reads both.

    Args:
      batch: with `COLUMNS`.

    Returns:
      (input_ids, attention_mask, labels), each i32[2 B, T].

    Raises:
      ValueError: a column is missing, or the two sides are of different lengths.

    Example:
      >>> batch = {name: jnp.ones((2, 3), jnp.int32) for name in COLUMNS}
      >>> [column.shape for column in both_sides(batch)]
      [(4, 3), (4, 3), (4, 3)]
    """
    need(batch, COLUMNS, "the task")
    shapes = {batch[name].shape for name in COLUMNS}
    if len(shapes) != 1:
        raise ValueError(
            f"expected {', '.join(COLUMNS)} of one shape [B, T], got "
            f"{sorted(shapes)}; preferences.encode_pairs pads both sides alike"
        )
    return tuple(
        jnp.concatenate([batch[f"{side}_{field}"] for side in SIDES])
        for field in FIELDS
    )


def answer_log_probs(model: Any, batch: dict[str, jax.Array], chunk: int) -> Answers:
    """Log-probabilities of both answers under a model.

    Args:
      model: a language model with `hidden` and `head`.
      batch: with `COLUMNS`.
      chunk: see `token_log_probs`.

    Returns:
      `Answers`.
    """
    found, counts = token_log_probs(model, *both_sides(batch), chunk=chunk)
    chosen, rejected = jnp.split(found, 2)
    chosen_counts, rejected_counts = jnp.split(counts, 2)
    return Answers(
        chosen=chosen,
        rejected=rejected,
        chosen_counts=chosen_counts,
        rejected_counts=rejected_counts,
    )


def stored_reference(batch: dict[str, jax.Array], of: Answers) -> Answers:
    """The answers' log-probabilities under the reference, from the columns `STORED`.

    Args:
      batch: with `STORED`.
      of: the same answers under the policy, for their masks.

    Returns:
      `Answers`.

    Raises:
      ValueError: a column is missing, or of another shape.
    """
    need(batch, STORED, "a task with stored=True")
    for name in STORED:
        if batch[name].shape != of.chosen.shape:
            raise ValueError(
                f"expected {name} of shape {list(of.chosen.shape)}, got "
                f"{list(batch[name].shape)}; preferences.store_reference makes it"
            )
    return of._replace(chosen=batch[STORED[0]], rejected=batch[STORED[1]])
