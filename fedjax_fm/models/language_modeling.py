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


def token_losses(
    hidden: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    labels: jax.Array,
    chunk: int = 128,
) -> jax.Array:
    """-log p(label) of every position, f32[B, T] in nats; 0 where the label is -100.

    Args:
      hidden: [B, T, d], what the head reads.
      head: `[n, d] -> logits f32[n, V]`, such as `model.head`.
      labels: i32[B, T], of the same position; -100 is ignored. Any other label outside
        of 0..V-1 gives NaN.
      chunk: positions whose logits exist at one time, forward and backward: chunk * V *
        4 bytes. The backward pass computes them once more.

    No more than one chunk's logits are held beside what the head itself holds: no chunk
    keeps a copy of its weights. Positions that count are moved to the front, and chunks
    without any are skipped: with the loss on answers only, the head is paid for answers
    only (but under `vmap`, where a condition computes both of its sides).
    """
    checks.whole("chunk", chunk, least=1)
    if hidden.shape[:2] != labels.shape:
        raise ValueError(
            f"hidden {list(hidden.shape)} and labels {list(labels.shape)} differ in [B, T]"
        )
    flat = labels.reshape(-1)
    order = jnp.argsort(flat == IGNORED, stable=True)
    n = flat.shape[0]
    padding = -n % chunk
    parts = jnp.pad(hidden.reshape(n, -1)[order], ((0, padding), (0, 0))).reshape(
        -1, chunk, hidden.shape[-1]
    )
    targets = jnp.pad(flat[order], (0, padding), constant_values=IGNORED).reshape(
        -1, chunk
    )

    def losses(part: jax.Array, targets: jax.Array) -> jax.Array:
        logits = head(part).astype(jnp.float32)
        ignored = targets == IGNORED
        # A negative index would wrap around; past the end it reads NaN, which nobody overlooks.
        index = jnp.where(ignored, 0, jnp.where(targets < 0, logits.shape[-1], targets))
        chosen = jnp.take_along_axis(logits, index[..., None], axis=-1, mode="fill")[
            ..., 0
        ]
        return jnp.where(ignored, 0.0, jax.nn.logsumexp(logits, axis=-1) - chosen)

    def nothing(part: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.zeros(targets.shape, jnp.float32)

    # Around the condition, not inside of it: what a branch closes over is an output of
    # the condition when it is differentiated, and the loop would keep a copy of the
    # head for each chunk.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(_, some):
        return None, jax.lax.cond(jnp.any(some[1] != IGNORED), losses, nothing, *some)

    _, stacked = jax.lax.scan(step, None, (parts, targets))
    return (
        jnp.zeros(n)
        .at[order]
        .set(stacked.reshape(-1)[:n], unique_indices=True)
        .reshape(labels.shape)
    )


def next_token_losses(
    model: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    labels: jax.Array | None = None,
    chunk: int = 128,
) -> tuple[jax.Array, jax.Array]:
    """(losses f32[B, T-1] in nats, mask bool[B, T-1]) of predicting token t + 1 from tokens 0..t.

    Args:
      model: with `hidden(input_ids, attention_mask)` and `head(hidden)`.
      input_ids: i32[B, T], T >= 2.
      attention_mask: [B, T], 1 for real tokens; in packed rows the number of the text, see `pack`.
      labels: i32[B, T], unshifted as in Hugging Face: labels[:, t] names the token at
        t, -100 leaves it out. Default: input_ids.
      chunk: see `token_losses`.

    A position counts where its label is not -100 and it and its predecessor are real
    and of the same text. (Hugging Face also counts the first token after padding on the
    left, predicted from padding: noise.) Losses are 0 where the mask is False; a row
    without a position has mask sum 0, so divide by max(sum, 1).
    """
    if input_ids.shape[-1] < 2:
        raise ValueError(
            f"next-token losses need at least 2 tokens, got {input_ids.shape[-1]}"
        )
    labels = input_ids if labels is None else labels
    mask = labels[:, 1:] != IGNORED
    if attention_mask is not None:
        text, before = attention_mask[:, 1:], attention_mask[:, :-1]
        mask = mask & (text != 0) & (text == before)
    hidden = model.hidden(input_ids, attention_mask)[:, :-1]
    return token_losses(
        hidden, model.head, jnp.where(mask, labels[:, 1:], IGNORED), chunk
    ), mask


def mean_over_texts(
    losses: jax.Array, mask: jax.Array, segments: jax.Array
) -> jax.Array:
    """f32[B]: the mean over a row's texts of each text's mean loss, so that a short
    text counts as much as a long one.

    Args:
      losses, mask: [B, T], as `next_token_losses` gives them; segments: i32[B, T], the
        text of each position. Texts without a counted position are left out; a row
        without any is 0.
    """
    same = (segments[:, :, None] == segments[:, None, :]) & mask[:, None, :]
    weights = jnp.where(
        mask, 1.0 / jnp.maximum(same.sum(-1), 1), 0.0
    )  # sums to 1 over a text
    return jnp.sum(losses * weights, axis=-1) / jnp.maximum(
        jnp.round(weights.sum(-1)), 1
    )
