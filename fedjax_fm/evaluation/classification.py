"""Evaluates a classifier example by example, in length buckets so that short sentences cost what they use."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks
from fedjax_fm.evaluation.buckets import checked_arrays, length_batches, split_rows
from fedjax_fm.types import Tree


class Results(NamedTuple):
    """One row per example, in the order given."""

    correct: np.ndarray  # bool[n]
    loss: np.ndarray  # f32[n], cross entropy

    @property
    def accuracy(self) -> float:
        """Share of correct ones."""
        return float(self.correct.mean())


class Evaluator:
    """Runs `logits_fn(params, input_ids [B, T], attention_mask [B, T]) -> [B, classes]` over arrays of any length.

    Args:
      batch_size: rows a call; the last batch of a bucket is padded with its first row.
      bucket: widths are rounded up to a multiple of this many tokens. One compile per width.
    """

    def __init__(self, logits_fn: Callable, batch_size: int = 64, bucket: int = 8):
        self.logits_fn = logits_fn
        self.batch_size = checks.whole("batch_size", batch_size, least=1)
        self.bucket = checks.whole("bucket", bucket, least=1)

        def score(params, input_ids, attention_mask, label):
            logits = logits_fn(params, input_ids, attention_mask)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return jnp.argmax(logits, axis=-1) == label, loss

        self._score = jax.jit(score)

    def __call__(self, params: Tree, arrays: dict[str, np.ndarray]) -> Results:
        """Scores every row of {"input_ids", "attention_mask", "label"}."""
        n = checked_arrays(arrays, ("input_ids", "attention_mask", "label"))
        correct, loss = np.zeros(n, bool), np.zeros(n, np.float32)
        for width, rows, padded in length_batches(arrays["attention_mask"], self.batch_size, self.bucket):
            part = self._score(
                params,
                arrays["input_ids"][padded, :width],
                arrays["attention_mask"][padded, :width],
                arrays["label"][padded],
            )
            correct[rows], loss[rows] = (np.asarray(x)[: len(rows)] for x in part)
        if not np.isfinite(loss).all():
            raise FloatingPointError(f"the loss of example {int(np.flatnonzero(~np.isfinite(loss))[0])} is not finite")
        return Results(correct, loss)


def by_client(results: Results, sizes: Sequence[int]) -> np.ndarray:
    """Accuracy of each client, f64[clients], from results over the clients' rows one after the other.

    Raises:
      ValueError: a client without rows, of which there is no accuracy; sizes that are not those of the results.
    """
    return np.array([part.mean() for part in split_rows(results.correct, sizes)])
