"""Token-weighted perplexity, in length buckets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.buckets import checked_arrays, length_batches, split_rows
from fedjax_fm.types import Tree


class TokenLosses(NamedTuple):
    """Sufficient statistics of every row: sums, so that any grouping of rows gives the same mean."""

    nll: np.ndarray  # f64[n], nats
    tokens: np.ndarray  # i64[n]

    @property
    def perplexity(self) -> float:
        """exp(sum of nll / sum of tokens): the same however the rows are dealt to clients."""
        return float(np.exp(self.nll.sum() / self.tokens.sum()))


class PerplexityEvaluator:
    """Runs `losses_fn(params, batch) -> (losses f32[B, T], mask bool[B, T])` over arrays of any length.

    Args:
      batch_size: rows a call; short batches are padded with their first row.
      bucket: widths are rounded up to a multiple of this many tokens; one compile a width.
    """

    def __init__(self, losses_fn: Callable, batch_size: int = 8, bucket: int = 32):
        self.batch_size = checks.whole("batch_size", batch_size, least=1)
        self.bucket = checks.whole("bucket", bucket, least=1)

        def score(params, batch):
            losses, mask = losses_fn(params, batch)
            return jnp.sum(jnp.where(mask, losses, 0.0), axis=1), jnp.sum(mask, axis=1)

        self._score = jax.jit(score)

    def __call__(self, params: Tree, arrays: dict[str, np.ndarray]) -> TokenLosses:
        """Scores every row of {"input_ids", "attention_mask", "labels"}: [n, T]."""
        n = checked_arrays(arrays, tuple(arrays))
        nll, tokens = np.zeros(n), np.zeros(n, np.int64)
        for width, rows, padded in length_batches(arrays["attention_mask"], self.batch_size, self.bucket):
            sums = self._score(params, {name: array[padded, :width] for name, array in arrays.items()})
            nll[rows], tokens[rows] = (np.asarray(x)[: len(rows)] for x in sums)
        if not np.isfinite(nll).all():
            raise FloatingPointError(f"the loss of row {int(np.flatnonzero(~np.isfinite(nll))[0])} is not finite")
        if not tokens.any():
            raise ValueError("no token counts: every label is -100")
        return TokenLosses(nll, tokens)


def perplexity_by_client(losses: TokenLosses, sizes: Sequence[int]) -> np.ndarray:
    """f64[clients], from losses over the clients' rows one after the other.

    Raises:
      ValueError: a client without rows, or without a token that counts; sizes that are not those of the losses.
    """
    nll = np.array([rows.sum() for rows in split_rows(losses.nll, sizes)])
    tokens = np.array([rows.sum() for rows in split_rows(losses.tokens, sizes)])
    if not tokens.all():
        silent = np.flatnonzero(tokens == 0).tolist()
        raise ValueError(f"clients {silent} have no token that counts, and no perplexity: leave them out")
    return np.exp(nll / tokens)
