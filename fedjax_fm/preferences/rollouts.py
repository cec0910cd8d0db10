"""Answers that a policy gives: one scan of fixed length, with a key-value cache.

It runs under `vmap`, so that all clients of a block write side by side. A loop that
ends early would run until the last client of the block has ended, too, and its length
would depend on who the neighbours are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.generate import end_ids
from fedjax_fm.models.language_modeling import IGNORED


class Rollouts(NamedTuple):
    """Prompts with answers; R rows, P tokens of a prompt, T of an answer.

    Attributes:
      input_ids: i32[R, P + T], padded on the left and behind the end.
      attention_mask: i32[R, P + T], 1 for real tokens.
      labels: i32[R, P + T], the answer's tokens where they are, else -100.
      log_probs: f32[R, T], of the tokens under the policy that wrote them; 0 behind the
        end.
      mask: bool[R, T], the tokens of the answer, its end among them.
    """

    input_ids: jax.Array
    attention_mask: jax.Array
    labels: jax.Array
    log_probs: jax.Array
    mask: jax.Array

    @property
    def tokens(self) -> jax.Array:
        """The answers alone, i32[R, T]."""
        return self.input_ids[..., -self.mask.shape[-1] :]

    @property
    def lengths(self) -> jax.Array:
        """Tokens of each answer, its end among them, i32[R]."""
        return self.mask.sum(axis=-1, dtype=jnp.int32)


class Writing(NamedTuple):
    """How answers are written.

    Attributes:
      max_new_tokens: T, at most so many.
      temperature: of the distribution that is drawn from, above 0.
      ends: ids, at any of which an answer ends; () for none.
      pad_token_id: fills rows behind the end.
    """

    max_new_tokens: int
    temperature: float = 1.0
    ends: tuple[int, ...] = ()
    pad_token_id: int = 0


def writing(
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
) -> Writing:
    """Checks how answers are written.

    There is no top-k or top-p: log-probabilities are those of the whole distribution,
    so that the ratio of a policy to itself is 1.

    Args:
      max_new_tokens: at most so many tokens an answer.
      temperature: of the distribution that is drawn from, above 0.
      eos_token_id: ends an answer, one id or several; None: none does.
      pad_token_id: fills rows behind the end.

    Returns:
      `Writing`.

    Raises:
      TypeError, ValueError: one of them is of another kind or out of bounds.

    Example:
      >>> writing(4, eos_token_id=2).ends
      (2,)
    """
    checks.whole("max_new_tokens", max_new_tokens, least=1)
    checks.real("temperature", temperature, above=0)
    checks.whole("pad_token_id", pad_token_id, least=0)
    return Writing(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        ends=tuple(end_ids(eos_token_id).tolist()),
        pad_token_id=pad_token_id,
    )


def roll_out(
    model: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    how: Writing,
    key: jax.Array | None,
) -> Rollouts:
    """Answers to prompts, drawn from the model or, without a key, the likeliest tokens.

    Row i draws its token t from `fold_in(fold_in(key, i), t)`.

    Args:
      model: a language model with `next_logits` and `empty_cache`.
      input_ids: i32[R, P], padded on the left.
      attention_mask: [R, P], 1 for real tokens.
      how: of `writing`.
      key: None takes the likeliest token of each step.

    Returns:
      `Rollouts`; the log-probabilities have the temperature in them, without a key too.

    Raises:
      ValueError: prompt and answer do not fit into the model's context.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      >>> ids = jnp.array([[0, 5], [8, 13]])
      >>> key = jax.random.key(0)
      >>> roll_out(model, ids, ids > 0, writing(4), key).tokens.shape
      (2, 4)
    """
    n_rows, n_prompt = input_ids.shape
    cache = _room(model, n_rows, n_prompt, how.max_new_tokens)
    mask = attention_mask.astype(bool)
    logits, cache = model.next_logits(input_ids, mask, cache)
    ends = jnp.asarray(how.ends, jnp.int32)
    keys = None if key is None else _row_keys(key, n_rows)

    def write(logits: jax.Array, done: jax.Array, step: jax.Array):
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32) / how.temperature)
        token = _chosen(log_probs, keys, step)
        found = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
        token = jnp.where(done, how.pad_token_id, token)
        row = (token, jnp.where(done, 0.0, found), ~done)
        return row, done | (token[:, None] == ends).any(axis=1)

    def step(carry, number: jax.Array):
        logits, done, cache = carry
        row, done = write(logits, done, number)
        real = jnp.ones((n_rows, 1), bool)
        logits, cache = model.next_logits(row[0][:, None], real, cache)
        return (logits, done, cache), row

    # The last token is chosen and not read, so that the cache need not hold it.
    steps = jnp.arange(how.max_new_tokens - 1)
    carry = (logits, jnp.zeros(n_rows, bool), cache)
    (logits, done, _), rows = jax.lax.scan(step, carry, steps)
    last, _ = write(logits, done, jnp.int32(how.max_new_tokens - 1))
    whole = [jnp.concatenate([a, b[None]]).T for a, b in zip(rows, last, strict=True)]
    tokens, log_probs, written = whole
    return _joined(input_ids, mask, tokens, log_probs, written)


def _chosen(log_probs: jax.Array, keys: jax.Array | None, step: jax.Array) -> jax.Array:
    """The token of each row, i32[R]."""
    if keys is None:
        return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(jax.random.categorical)(folded, log_probs).astype(jnp.int32)


def _row_keys(key: jax.Array, n_rows: int) -> jax.Array:
    """One key a row."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n_rows))


def _joined(
    input_ids: jax.Array,
    mask: jax.Array,
    tokens: jax.Array,
    log_probs: jax.Array,
    written: jax.Array,
) -> Rollouts:
    """Prompts and answers as rows."""
    nothing = jnp.full(input_ids.shape, IGNORED, jnp.int32)
    answer = jnp.where(written, tokens, IGNORED)
    real = jnp.concatenate([mask, written], axis=1)
    return Rollouts(
        input_ids=jnp.concatenate([input_ids, tokens], axis=1),
        attention_mask=real.astype(jnp.int32),
        labels=jnp.concatenate([nothing, answer], axis=1),
        log_probs=log_probs,
        mask=written,
    )


def _room(model: Any, n_rows: int, n_prompt: int, n_new: int) -> Any:
    """An empty cache; says what is too long where it does not fit."""
    if not (hasattr(model, "next_logits") and hasattr(model, "empty_cache")):
        raise TypeError(
            "expected a language model that generates (next_logits, empty_cache), got "
            f"{type(model).__name__}"
        )
    try:
        return model.empty_cache(n_rows, n_prompt + n_new)
    except ValueError as error:
        raise ValueError(
            f"prompts of {n_prompt} tokens and max_new_tokens={n_new} do not fit into "
            f"the model's context: {error}; shorten the prompts or the answers"
        ) from error
