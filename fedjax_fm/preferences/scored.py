"""A language model with a head that gives one number: a reward, or a value."""

from typing import Any

import jax
from flax import nnx

from fedjax_fm.models.classifier import classifier, last_real
from fedjax_fm.models.generate import KVCache
from fedjax_fm.tasks.language_modeling import check_model


class Scored(nnx.Module):
    """A language model and a linear score of its hidden states.

    It generates as the model itself does. A reward model reads the score of the last
    token of an answer, a critic that of every token; both can share one backbone.

    Args:
      model: a language model with `hidden` and `head`.
      rngs: draws the head, normal(0.02); its bias is zero.

    Raises:
      TypeError: it is no language model.
    """

    def __init__(self, model: nnx.Module, rngs: nnx.Rngs):
        check_model(model)
        config: Any = getattr(model, "config", None)
        self.model = model
        self.config = config
        width = getattr(config, "hidden_size", None) or getattr(config, "n_embd", None)
        if width is None:
            raise TypeError(
                "expected a model whose config has hidden_size or n_embd, got "
                f"{type(model).__name__}"
            )
        self.score = classifier(width, 1, rngs)

    def hidden(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """The hidden states [B, T, d] of the model.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
        """
        return self.model.hidden(input_ids, attention_mask)  # type: ignore[attr-defined]

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of the model.

        Args:
          hidden: [..., d].
        """
        return self.model.head(hidden)  # type: ignore[attr-defined]

    def scores(self, hidden: jax.Array) -> jax.Array:
        """The score of every hidden state, f32[...].

        Args:
          hidden: [..., d].
        """
        return self.score(hidden.astype("float32"))[..., 0]

    def rewards(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """The score of each row's last real token, f32[B].

        Args:
          input_ids: i32[B, T], padded on either side.
          attention_mask: [B, T], 1 for real tokens; None: all are.
        """
        hidden = self.hidden(input_ids, attention_mask)
        return self.scores(last_real(hidden, attention_mask))

    def next_logits(
        self, input_ids: jax.Array, attention_mask: jax.Array | None, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Logits after the last token, as `models.generate` needs them.

        Args:
          input_ids: i32[B, T], the new tokens.
          attention_mask: [B, T] of these tokens.
          cache: see `empty_cache`.
        """
        return self.model.next_logits(input_ids, attention_mask, cache)  # type: ignore[attr-defined]

    def empty_cache(self, batch_size: int, max_length: int) -> KVCache:
        """The model's empty cache.

        Args:
          batch_size: rows.
          max_length: tokens of a row.
        """
        return self.model.empty_cache(batch_size, max_length)  # type: ignore[attr-defined]


def with_score(model: nnx.Module, key: jax.Array | None = None) -> Scored:
    """A language model with a head that gives one number.

    `peft.apply` trains the head beside the adapters, as it trains any head of the name
    `score`.

    Args:
      model: a language model of `models`; it is shared, not copied.
      key: draws the head; None: `jax.random.key(0)`.

    Returns:
      The model with its head.

    Raises:
      TypeError: it is no language model.

    Example:
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> scored = preferences.with_score(model)
      >>> adapted = peft.apply(scored, peft.lora(2, targets=["q_proj"]))
      >>> sorted(nnx.to_pure_dict(adapted.delta))
      ['model', 'score']
    """
    key = jax.random.key(0) if key is None else key
    return Scored(model, nnx.Rngs(key))
