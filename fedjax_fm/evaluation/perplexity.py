"""Token-weighted perplexity, in length buckets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.evaluation.buckets import (
    check_batches,
    check_rows,
    length_batches,
    split_by_client,
)
from fedjax_fm.population.values import checked_array
from fedjax_fm.types import Tree


class TokenLosses(NamedTuple):
    """Sufficient statistics of every row.

    Sums, so that any grouping of rows gives the same mean.
    """

    nll: np.ndarray  # f64[n], nats
    tokens: np.ndarray  # i64[n]

    @property
    def perplexity(self) -> float:
        """exp(sum of nll / sum of tokens).

        The same however the rows are dealt to clients; NaN without tokens.
        """
        return _perplexity(self.nll, self.tokens)


class PerplexityEvaluator:
    """Runs `losses_fn(params, batch) -> (losses f32[B, T], mask bool[B, T])` over
    arrays of any length.

    Args:
      losses_fn: the loss of every position, and which positions count; batch is the
        arrays' rows, cut on the right.
      batch_size: rows a call; short batches are padded with their first row.
      bucket: widths are rounded up to a multiple of this many tokens; one compile a width.

    Raises:
      TypeError, ValueError: a batch size or a bucket that is no whole number >= 1.
    """

    def __init__(self, losses_fn: Callable, batch_size: int = 8, bucket: int = 32):
        check_batches(batch_size, bucket)
        self.batch_size, self.bucket = batch_size, bucket

        def score(params, batch):
            losses, mask = losses_fn(params, batch)
            _check_losses(losses, mask, len(batch["attention_mask"]))
            return jnp.sum(jnp.where(mask, losses, 0.0), axis=1), jnp.sum(mask, axis=1)

        self._score = jax.jit(score)

    def __call__(self, params: Tree, arrays: dict[str, np.ndarray]) -> TokenLosses:
        """Scores every row of {"input_ids", "attention_mask", "labels"}: [n, T].

        Raises:
          ValueError: no rows, arrays of unequal length, values that a device would
            change, or no token that counts.
          FloatingPointError: a loss that is not finite.
        """
        arrays = {name: checked_array(name, array) for name, array in arrays.items()}
        n = check_rows(arrays)
        nll, tokens = np.zeros(n), np.zeros(n, np.int64)
        for width, rows, padded in length_batches(
            arrays["attention_mask"], self.batch_size, self.bucket
        ):
            sums = self._score(
                params, {name: array[padded, :width] for name, array in arrays.items()}
            )
            nll[rows], tokens[rows] = (np.asarray(x)[: len(rows)] for x in sums)
        if not np.isfinite(nll).all():
            raise FloatingPointError(
                f"the loss of row {int(np.flatnonzero(~np.isfinite(nll))[0])} is not finite"
            )
        if not tokens.any():
            raise ValueError("no token counts: every label is -100")
        return TokenLosses(nll, tokens)


def perplexity_by_client(
    losses: TokenLosses, sizes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Perplexity of each client, from losses over the clients' rows one after the other.

    Args:
      losses: of all clients' rows.
      sizes: rows of each client, such as `Population.sizes`.

    Returns:
      f64[clients]; NaN for a client without tokens that count (`np.nanmean` leaves it out).

    Raises:
      TypeError, ValueError: sizes that are no whole numbers >= 0 or do not add up to the rows.
    """
    nll, tokens = split_by_client(sizes, len(losses.nll), losses.nll, losses.tokens)
    return np.array([_perplexity(*pair) for pair in zip(nll, tokens, strict=True)])


def _perplexity(nll: np.ndarray, tokens: np.ndarray) -> float:
    """Exp of the mean over tokens; NaN without tokens, infinite where no float is large enough."""
    if not tokens.sum():
        return float("nan")
    with np.errstate(over="ignore"):
        return float(np.exp(nll.sum() / tokens.sum()))


def _check_losses(losses: jax.Array, mask: jax.Array, n: int) -> None:
    """Shapes that would broadcast give sums over the wrong positions; seen while tracing."""
    if jnp.shape(losses) != jnp.shape(mask) or jnp.ndim(losses) != 2:
        raise ValueError(
            "expected losses and mask of one shape [B, T], got "
            f"{list(jnp.shape(losses))} and {list(jnp.shape(mask))}"
        )
    if len(losses) != n:
        raise ValueError(f"expected losses and mask of {n} rows, got {len(losses)}")
    if mask.dtype != bool:
        raise TypeError(
            f"expected a mask of bool, True where a position counts, got {mask.dtype}"
        )
