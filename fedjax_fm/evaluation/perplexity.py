"""Token-weighted perplexity, in length buckets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.buckets import length_batches
from fedjax_fm.types import Tree


class TokenLosses(NamedTuple):
    """Sufficient statistics of every row: sums, so that any grouping of rows gives the same mean."""

    nll: np.ndarray  # f64[n], nats
    tokens: np.ndarray  # i64[n]

    @property
    def perplexity(self) -> float:
        """exp(sum of nll / sum of tokens): the same however the rows are dealt to clients.

        Raises:
          ValueError: no token counts.
        """
        if not self.tokens.any():
            raise ValueError("there is no token to take the perplexity of")
        return float(np.exp(self.nll.sum() / self.tokens.sum()))


class PerplexityEvaluator:
    """Runs `losses_fn(params, batch) -> (losses f32[B, T], mask bool[B, T])` over arrays of any length.

    Args:
      losses_fn: the loss of every position, and which positions count; batch is the arrays' rows, cut on the right.
      batch_size: rows a call; short batches are padded with their first row.
      bucket: widths are rounded up to a multiple of this many tokens; one compile a width.

    Raises:
      TypeError, ValueError: a batch_size or bucket that is no whole number >= 1.
    """

    def __init__(self, losses_fn: Callable, batch_size: int = 8, bucket: int = 32):
        self.batch_size = checks.whole("batch_size", batch_size, least=1)
        self.bucket = checks.whole("bucket", bucket, least=1)

        def score(params, batch):
            losses, mask = losses_fn(params, batch)
            _check_losses(losses, mask, len(batch["attention_mask"]))
            return jnp.sum(jnp.where(mask, losses, 0.0), axis=1), jnp.sum(mask, axis=1)

        self._score = jax.jit(score)

    def __call__(self, params: Tree, arrays: dict[str, np.ndarray]) -> TokenLosses:
        """Scores every row of {"input_ids", "attention_mask", "labels"}: [n, T], padded on the right.

        Raises:
          TypeError, ValueError: no rows, arrays of unequal length, rows padded elsewhere, losses or masks of another
            shape than [B, T], no token that counts.
          FloatingPointError: a row's loss is not finite; names the row.
        """
        if "attention_mask" not in arrays:
            raise ValueError(f"expected an array attention_mask, got {sorted(arrays)}")
        n = len(arrays["attention_mask"])
        for name, array in arrays.items():
            if len(array) != n:
                raise ValueError(f"{name} has {len(array)} rows and attention_mask has {n}")
        if n == 0:
            raise ValueError("nothing to evaluate: the arrays have no rows")
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

    Args:
      losses: of all clients' rows.
      sizes: rows of each client.

    Raises:
      TypeError, ValueError: sizes that are no whole numbers >= 0 or do not add up to the rows, or a client without a
        token that counts, which has no perplexity.
    """
    for client, size in enumerate(sizes):
        checks.whole(f"size of client {client}", size, least=0)
    if sum(sizes) != len(losses.nll):
        raise ValueError(f"the clients have {sum(sizes)} rows, the losses {len(losses.nll)}")
    places = np.cumsum(sizes)[:-1]
    nll = np.array([part.sum() for part in np.split(losses.nll, places)])
    tokens = np.array([part.sum() for part in np.split(losses.tokens, places)])
    if not tokens.all():
        raise ValueError(f"client {int(np.argmin(tokens != 0))} has no token that counts; leave it out")
    return np.exp(nll / tokens)


def _check_losses(losses: jax.Array, mask: jax.Array, n: int) -> None:
    """Shapes that would broadcast give sums over the wrong positions; seen while tracing."""
    if jnp.shape(losses) != jnp.shape(mask) or jnp.ndim(losses) != 2:
        raise ValueError(
            f"expected losses and mask of one shape [B, T], got {list(jnp.shape(losses))} and {list(jnp.shape(mask))}"
        )
    if len(losses) != n:
        raise ValueError(f"expected losses and mask of {n} rows, got {len(losses)}")
    if mask.dtype != bool:
        raise TypeError(f"expected a mask of bool, True where a position counts, got {mask.dtype}")
