"""Scores of texts by what a language model says of each token; larger: rather a member.

Loss: Yeom et al. 2018, arXiv 1709.01604. Min-K %: Shi et al. 2023, "Detecting
Pretraining Data from Large Language Models", arXiv 2310.16789.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_fm import checks
from fedjax_fm.tasks.columns import need
from fedjax_fm.tasks.language_modeling import COLUMNS, losses_of_tokens
from fedjax_fm.types import Tree


class TokenScores(NamedTuple):
    """What a model says of the tokens of some texts.

    Attributes:
      log_p: f32[n, T], log p(token | tokens before it), in nats; 0 where none counts.
      counts: bool[n, T], tokens that count: answers and texts, no prompts and padding.
    """

    log_p: np.ndarray
    counts: np.ndarray


def token_scores(
    adapted: Any,
    delta: Tree,
    backbone: Tree,
    arrays: Mapping[str, Any],
    *,
    batch_size: int = 16,
) -> TokenScores:
    """The log-probability of each token that `tasks.language_modeling` counts.

    Args:
      adapted: a language model from `peft.apply`.
      delta: its trainable tree.
      backbone: its frozen tree.
      arrays: `input_ids`, `attention_mask`, `labels`, i32[n, T].
      batch_size: texts that are computed at once.

    Returns:
      The scores, in the order of the texts.

    Raises:
      TypeError, ValueError: no text, a missing column, or a size that is none.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.full())
      >>> ids = np.arange(8).reshape(2, 4)
      >>> arrays = {"input_ids": ids, "attention_mask": ids >= 0, "labels": ids}
      >>> found = token_scores(adapted, adapted.delta, adapted.backbone, arrays)
      >>> found.log_p.shape, int(found.counts.sum())
      ((2, 3), 6)
    """
    checks.whole("batch_size", batch_size, least=1)
    need(dict(arrays), COLUMNS, "the scores of tokens")
    columns = {name: np.asarray(arrays[name], np.int32) for name in COLUMNS}
    n = len(columns["input_ids"])
    if n == 0:
        raise ValueError("expected at least one text, got none")
    log_p, counts = [], []
    for start in range(0, n, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        batch = {name: column[rows] for name, column in columns.items()}
        losses, mask = _losses(adapted.graphdef, delta, backbone, batch)
        log_p.append(-np.asarray(losses))
        counts.append(np.asarray(mask))
    return TokenScores(np.concatenate(log_p)[:n], np.concatenate(counts)[:n])


@functools.partial(jax.jit, static_argnames="graphdef")
def _losses(
    graphdef: Any, delta: Tree, backbone: Tree, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    from flax import nnx

    return losses_of_tokens(nnx.merge(graphdef, delta, backbone), batch)


def mean_log_p(scores: TokenScores) -> np.ndarray:
    """The attack by the loss: the mean log-probability of a text's tokens.

    Args:
      scores: of `token_scores`.

    Returns:
      f64[n]; 0 of a text without a token that counts.

    Example:
      >>> log_p = np.array([[-1.0, -3.0, 0.0]])
      >>> mean_log_p(TokenScores(log_p, np.array([[True, True, False]]))).tolist()
      [-2.0]
    """
    total = np.where(scores.counts, scores.log_p, 0.0).astype(np.float64).sum(axis=1)
    return total / np.maximum(scores.counts.sum(axis=1), 1)


def least_likely(scores: TokenScores, share: float = 0.2) -> np.ndarray:
    """Min-K %: the mean log-probability of a text's least likely tokens.

    A text that was never seen has some tokens that surprise the model much. At least
    one token counts; all of them give `mean_log_p`.

    Args:
      scores: of `token_scores`.
      share: K, of each text's tokens, 0 < share <= 1; rounded down.

    Returns:
      f64[n]; 0 of a text without a token that counts.

    Raises:
      TypeError, ValueError: a share out of bounds.

    References:
      Shi et al. 2023, arXiv 2310.16789, eq. (1).

    Example:
      >>> log_p = np.array([[-1.0, -3.0, -2.0, -0.5]])
      >>> found = TokenScores(log_p, np.ones((1, 4), bool))
      >>> least_likely(found, share=0.5).tolist()
      [-2.5]
    """
    checks.real("share", share, above=0, most=1)
    rising = np.sort(np.where(scores.counts, scores.log_p, np.inf), axis=1)
    n_tokens = scores.counts.sum(axis=1)
    taken = np.minimum(np.maximum((share * n_tokens).astype(int), 1), n_tokens)
    is_taken = np.arange(rising.shape[1]) < taken[:, None]
    total = np.where(is_taken, rising, 0.0).astype(np.float64).sum(axis=1)
    return total / np.maximum(taken, 1)
