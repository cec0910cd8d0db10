"""Log-probabilities of answers, token by token, without the logits of all positions."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.language_modeling import next_token_losses


def token_log_probs(
    model: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    labels: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 128,
) -> tuple[jax.Array, jax.Array]:
    """Log p(token_t | tokens before t) of the tokens that labels name, in nats.

        p = softmax(logits / temperature)

    Args:
      model: a language model with `hidden` and `head`.
      input_ids: i32[B, T], prompts and answers, padded on either side.
      attention_mask: [B, T], 1 for real tokens.
      labels: i32[B, T], unshifted: the token where it counts, else -100.
      temperature: of the distribution, above 0; that of the sampler where ratios to
        sampled log-probabilities are taken.
      chunk: positions whose logits are in memory at one time, see
        `models.next_token_losses`.

    Returns:
      (f32[B, T-1], bool[B, T-1]): of tokens 1, 2, ...; 0 where the mask is False.

    Raises:
      TypeError, ValueError: a temperature that is not above 0, fewer than two tokens.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      >>> ids = jnp.array([[5, 8, 13]])
      >>> labels = jnp.array([[-100, -100, 13]])
      >>> found, counts = token_log_probs(model, ids, jnp.ones_like(ids), labels)
      >>> found.shape, counts.tolist()
      ((1, 2), [[False, True]])
    """
    checks.real("temperature", temperature, above=0)

    def head(hidden: jax.Array) -> jax.Array:
        return model.head(hidden) / temperature

    tempered = SimpleNamespace(hidden=model.hidden, head=head)
    losses, counts = next_token_losses(
        tempered, input_ids, attention_mask, labels, chunk=chunk
    )
    return -losses, counts


def total(log_probs: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum over a row's tokens.

    Args:
      log_probs: f32[B, T].
      weights: [B, T], a number or whether a token counts.

    Returns:
      f32[B].

    Example:
      >>> total(jnp.array([[-1.0, -2.0]]), jnp.array([[True, False]])).tolist()
      [-1.0]
    """
    return jnp.sum(log_probs * weights, axis=-1)
