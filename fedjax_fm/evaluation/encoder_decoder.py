"""How likely an encoder-decoder finds an answer to what its encoder has read.

As lm-eval's `hf` model scores a seq2seq model: the context goes into the encoder, the
continuation into the decoder, shifted right behind the start token.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.evaluation.buckets import doubling_batches
from fedjax_fm.models.language_modeling import IGNORED

LONGEST = 512  # tokens of a side; T5 has no limit, and was trained on as many


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model reads a prompt with an encoder.

    Args:
      model: a language model of `models`.
    """
    needed = ("encode", "decode", "start", "head")
    return all(hasattr(model, name) for name in needed)


def side_length(max_length: int | None) -> int:
    """Tokens that the encoder, and the decoder, reads at most.

    Args:
      max_length: what was asked for; None: `LONGEST`.
    """
    if max_length is None:
        return LONGEST
    return checks.whole("max_length", max_length, least=1)


def scores_of_pairs(
    model: Any,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int,
    most: int,
    scored: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of continuations, and whether greedy decoding writes them.

    Args:
      model: an encoder-decoder.
      pairs: (ids of the context, ids of the continuation), neither longer than `most`.
      batch_size: pairs that are computed at once.
      most: tokens of a side.
      scored: (hidden, head, labels) -> (log p of labels, whether each is likeliest).

    Returns:
      (f64[n], bool[n]).
    """
    sums, greedy = np.zeros(len(pairs)), np.zeros(len(pairs), bool)
    longest = [max(len(context), len(answer)) for context, answer in pairs]
    graphdef, weights = nnx.split(model)
    lengths = np.array(longest, np.int64)
    for width, rows, padded in doubling_batches(lengths, batch_size, most):
        batch = _batch([pairs[row] for row in padded], width)
        log_p, chosen = _scored(graphdef, weights, *batch, scored=scored)
        own = slice(len(rows))  # the rest fills the batch
        sums[rows] = np.asarray(log_p, np.float64)[own].sum(axis=1)
        greedy[rows] = np.asarray(chosen)[own].all(axis=1)
    return sums, greedy


def _batch(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input_ids, attention_mask, labels), each i32[B, width], padded on the right."""
    ids = np.zeros((len(pairs), width), np.int32)
    mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
    for row, (context, answer) in enumerate(pairs):
        ids[row, : len(context)], mask[row, : len(context)] = context, 1
        labels[row, : len(answer)] = answer
    return ids, mask, labels


@functools.partial(jax.jit, static_argnames=("graphdef", "scored"))
def _scored(
    graphdef: Any,
    weights: Any,
    ids: jax.Array,
    mask: jax.Array,
    labels: jax.Array,
    scored: Any,
) -> tuple[jax.Array, jax.Array]:
    """(log p(label) f32[B, U], whether the label is likeliest bool[B, U])."""
    model = nnx.merge(graphdef, weights)
    hidden = model.hidden(ids, mask, model.shift_right(labels))
    return scored(hidden, model.head, labels)
