"""Evaluates a classifier example by example, in length buckets so that short sentences
cost what they use.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm.evaluation.buckets import (
    check_batches,
    check_rows,
    length_batches,
    split_by_client,
)
from fedjax_fm.population.values import checked_array
from fedjax_fm.types import Tree


class Results(NamedTuple):
    """One row per example, in the order given."""

    correct: np.ndarray  # bool[n]
    loss: np.ndarray  # f32[n], cross entropy

    @property
    def accuracy(self) -> float:
        """Share of correct ones; NaN without examples."""
        return float(self.correct.mean()) if len(self.correct) else float("nan")


class Evaluator:
    """Runs `logits_fn(params, input_ids [B, T], attention_mask [B, T]) -> [B, classes]`
    over arrays of any length.

    Args:
      batch_size: rows a call; the last batch of a bucket is padded with its first row.
      bucket: widths are rounded up to a multiple of this many tokens. One compile per width.

    Raises:
      TypeError, ValueError: a batch size or a bucket that is no whole number >= 1.
    """

    def __init__(self, logits_fn: Callable, batch_size: int = 64, bucket: int = 8):
        check_batches(batch_size, bucket)
        self.logits_fn, self.batch_size, self.bucket = logits_fn, batch_size, bucket

        def score(params, input_ids, attention_mask, label):
            logits = logits_fn(params, input_ids, attention_mask)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return jnp.argmax(logits, axis=-1) == label, loss

        self._score = jax.jit(score)

    def __call__(self, params: Tree, arrays: dict[str, np.ndarray]) -> Results:
        """Scores every row of {"input_ids", "attention_mask", "label"}.

        Raises:
          ValueError: no rows, arrays of unequal length, labels that are no whole
            numbers >= 0, values that a device would change.
          FloatingPointError: a loss that is not finite.
        """
        arrays = {
            name: checked_array(name, arrays[name])
            for name in ("input_ids", "attention_mask", "label")
        }
        n = check_rows(arrays, ("input_ids", "attention_mask", "label"))
        _check_labels(arrays["label"])
        correct, loss = np.zeros(n, bool), np.zeros(n, np.float32)
        for width, rows, padded in length_batches(
            arrays["attention_mask"], self.batch_size, self.bucket
        ):
            part = self._score(
                params,
                arrays["input_ids"][padded, :width],
                arrays["attention_mask"][padded, :width],
                arrays["label"][padded],
            )
            correct[rows], loss[rows] = (np.asarray(x)[: len(rows)] for x in part)
        if not np.isfinite(loss).all():
            raise FloatingPointError(
                f"the loss of example {int(np.flatnonzero(~np.isfinite(loss))[0])} is not finite"
            )
        return Results(correct, loss)


def by_client(results: Results, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Accuracy of each client, from results over the clients' rows one after the other.

    Args:
      results: of all clients' rows.
      sizes: rows of each client, such as `Population.sizes`.

    Returns:
      f64[clients]; NaN for a client without rows, who has no accuracy (`np.nanmean` leaves it out).

    Raises:
      TypeError, ValueError: sizes that are no whole numbers >= 0 or do not add up to the rows.

    Example:
      >>> results = Results(np.array([True, False, True]), np.zeros(3))
      >>> by_client(results, [2, 0, 1])
      array([0.5, nan, 1. ])
    """
    (parts,) = split_by_client(sizes, len(results.correct), results.correct)
    return np.array([part.mean() if len(part) else np.nan for part in parts])


def _check_labels(label: np.ndarray) -> None:
    """Raises ValueError for labels that no logit stands for.

    A negative one would count from the end.
    """
    if label.ndim != 1 or label.dtype.kind not in "iu":
        raise ValueError(
            f"expected label as whole numbers [n], got dtype {label.dtype} and shape {label.shape}"
        )
    if label.min() < 0:
        row = int(label.argmin())
        raise ValueError(
            f"expected label >= 0, got {label[row]} in row {row}; leave out rows without a label"
        )
