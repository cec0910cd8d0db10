"""Losses of language models, without ever holding the logits of all positions.

At a vocabulary of 49,152 the logits of one position are 192 KiB in f32: 256 positions
of 8 rows would take 384 MiB, three times over with their gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks

IGNORED = -100  # the label that torch's cross_entropy ignores


def shifted(labels: jax.Array, first: int, pad: int) -> jax.Array:
    """The decoder's input for these targets: a start token and all but the last.

    Args:
      labels: i32[B, U], -100 where there is no target.
      first: the id of the start token.
      pad: the id that stands for a missing target.

    Returns:
      i32[B, U].

    Example:
      >>> shifted(jnp.array([[5, 8, -100, -100]]), first=2, pad=0).tolist()
      [[2, 5, 8, 0]]
    """
    moved = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=first)
    return jnp.where(moved == IGNORED, pad, moved)


def token_losses(
    hidden: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    labels: jax.Array,
    chunk: int = 128,
) -> jax.Array:
    """Cross-entropy of every position: -log p(label), in nats.

    No more than one chunk's logits are held beside what the head itself holds: no chunk
    keeps a copy of its weights. Positions that count are moved to the front, and chunks
    without any are skipped: with the loss on answers only, the head is paid for answers
    only (but under `vmap`, where a condition computes both of its sides).

    Args:
      hidden: [B, T, d], what the head reads.
      head: `[n, d] -> logits f32[n, V]`, such as `model.head`.
      labels: i32[B, T], of the same position; -100 is ignored. Any other label outside
        of 0..V-1 gives NaN.
      chunk: positions whose logits exist at one time, forward and backward: chunk * V *
        4 bytes. The backward pass computes them once more.

    Returns:
      f32[B, T]; 0 where the label is -100.

    Raises:
      TypeError, ValueError: `chunk` is no whole number >= 1, or shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import models
      >>> hidden, labels = jnp.zeros((1, 3, 2)), jnp.array([[0, 3, -100]])
      >>> losses = models.token_losses(hidden, lambda x: x @ jnp.ones((2, 4)), labels)
      >>> losses.round(3).tolist()  # log 4, of four tokens
      [[1.3860000371932983, 1.3860000371932983, 0.0]]
    """
    checks.whole("chunk", chunk, least=1)
    if hidden.shape[:2] != labels.shape:
        raise ValueError(
            f"hidden {list(hidden.shape)} and labels {list(labels.shape)} differ in "
            "[B, T]"
        )
    flat = labels.reshape(-1)
    order = jnp.argsort(flat == IGNORED, stable=True)
    n = flat.shape[0]
    padding = -n % chunk
    parts = jnp.pad(hidden.reshape(n, -1)[order], ((0, padding), (0, 0)))
    parts = parts.reshape(-1, chunk, hidden.shape[-1])
    targets = jnp.pad(flat[order], (0, padding), constant_values=IGNORED)
    targets = targets.reshape(-1, chunk)

    def losses(part: jax.Array, targets: jax.Array) -> jax.Array:
        logits = head(part).astype(jnp.float32)
        ignored = targets == IGNORED
        # A negative index would wrap around; past the end it reads NaN, which shows.
        index = jnp.where(targets < 0, logits.shape[-1], targets)
        index = jnp.where(ignored, 0, index)[..., None]
        chosen = jnp.take_along_axis(logits, index, axis=-1, mode="fill")[..., 0]
        return jnp.where(ignored, 0.0, jax.nn.logsumexp(logits, axis=-1) - chosen)

    def nothing(part: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.zeros(targets.shape, jnp.float32)

    # Around the condition, not inside of it: what a branch closes over is an output of
    # the condition when it is differentiated, and the loop would keep a copy of the
    # head for each chunk.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(_, some):
        return None, jax.lax.cond(jnp.any(some[1] != IGNORED), losses, nothing, *some)

    with jax.named_scope("chunks"):
        _, stacked = jax.lax.scan(step, None, (parts, targets))
    found = stacked.reshape(-1)[:n]
    in_order = jnp.zeros(n).at[order].set(found, unique_indices=True)
    return in_order.reshape(labels.shape)


def next_token_losses(
    model: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    labels: jax.Array | None = None,
    chunk: int = 128,
) -> tuple[jax.Array, jax.Array]:
    """Losses of predicting token t + 1 from tokens 0..t, in nats.

    A position counts where its label is not -100 and it and its predecessor are real
    and of the same text. (Hugging Face also counts the first token after padding on the
    left, predicted from padding: noise.)

    Args:
      model: with `hidden(input_ids, attention_mask)` and `head(hidden)`.
      input_ids: i32[B, T], T >= 2.
      attention_mask: [B, T], 1 for real tokens; in packed rows the number of the text,
        see `pack`. None: all are real and of one text.
      labels: i32[B, T], unshifted as in Hugging Face: labels[:, t] names the token at
        t, -100 leaves it out. None: `input_ids`.
      chunk: positions whose logits exist at one time, see `token_losses`.

    Returns:
      (losses f32[B, T-1], mask bool[B, T-1]). Losses are 0 where the mask is False; a
      row without a position has mask sum 0, so divide by max(sum, 1).

    Raises:
      ValueError: fewer than two tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2
      ... )
      >>> def run(ids):
      ...     model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      ...     return models.next_token_losses(model, ids)
      >>> losses, counted = jax.eval_shape(run, jnp.ones((3, 5), jnp.int32))
      >>> losses.shape, counted.shape  # traced, not computed
      ((3, 4), (3, 4))
    """
    if input_ids.shape[-1] < 2:
        raise ValueError(
            f"next-token losses need at least 2 tokens, got {input_ids.shape[-1]}"
        )
    following = (input_ids if labels is None else labels)[:, 1:]
    mask = following != IGNORED
    if attention_mask is not None:
        text, before = attention_mask[:, 1:], attention_mask[:, :-1]
        mask = mask & (text != 0) & (text == before)
    hidden = model.hidden(input_ids, attention_mask)[:, :-1]
    targets = jnp.where(mask, following, IGNORED)
    return token_losses(hidden, model.head, targets, chunk), mask


def mean_over_texts(
    losses: jax.Array, mask: jax.Array, segments: jax.Array
) -> jax.Array:
    """The mean over a row's texts of each text's mean loss.

    A short text counts as much as a long one.

    Args:
      losses: f32[B, T], as `next_token_losses` gives them.
      mask: bool[B, T], which positions count.
      segments: i32[B, T], the number of the text of each position.

    Returns:
      f32[B]. Texts without a counted position are left out; a row without any is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import models
      >>> losses = jnp.array([[1.0, 1.0, 1.0, 4.0]])
      >>> segments = jnp.array([[1, 1, 1, 2]])
      >>> models.mean_over_texts(losses, jnp.ones((1, 4), bool), segments).tolist()
      [2.5]
    """
    same = (segments[:, :, None] == segments[:, None, :]) & mask[:, None, :]
    # Sums to 1 over a text.
    n_tokens = jnp.maximum(same.sum(-1), 1)
    weights = jnp.where(mask, 1.0 / n_tokens, 0.0)
    n_texts = jnp.round(weights.sum(-1))
    return jnp.sum(losses * weights, axis=-1) / jnp.maximum(n_texts, 1)
