"""The last layer of an encoder or a decoder and its head, on hidden states of all tokens.

The layers before it are frozen, so that their output is computed once. The layer stands
alone, not in a stack of one: what its modules read can be looked at from outside.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.experiments.shared.tail import outputs
from fedjax_fm.models.bert import attention_mask_of
from fedjax_fm.models.rotary import count_positions, rotary_tables
from fedjax_fm.models.windows import AttentionMask


def last_layer(stacked: Any) -> Any:
    """The last of stacked layers, without the leading axis.

    Args:
      stacked: of `models.stacked.stack`.
    """
    graphdef, state = nnx.split(stacked)
    layer = nnx.merge(graphdef, jax.tree.map(lambda x: x[-1], state))
    del layer.stacked_layers
    return layer


def lower_layers(stacked: Any) -> Any:
    """All stacked layers but the last.

    Args:
      stacked: of `models.stacked.stack`, two layers or more.
    """
    graphdef, state = nnx.split(stacked)
    layers = nnx.merge(graphdef, jax.tree.map(lambda x: x[:-1], state))
    layers.stacked_layers -= 1
    return layers


class EncoderTail(nnx.Module):
    """The last layer of a BERT, and a linear classifier on each token.

    `tail(hidden f32[B, T, d], attention_mask [B, T]) -> logits f32[B, T, K]`.

    Args:
      model: a token classifier with a BERT encoder.
    """

    def __init__(self, model: Any):
        self.layer = last_layer(model.bert.encoder.layer)
        self.classifier = nnx.clone(model.classifier)

    def states(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """What the classifier reads, f32[B, T, d].

        Args:
          hidden: f32[B, T, d], what the last layer reads.
          attention_mask: [B, T], 1 for real tokens.
        """
        length = hidden.shape[1]
        mask = attention_mask_of(attention_mask, length, n_prompt=0, causal=False)
        return self.layer(hidden, mask)

    def __call__(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Logits f32[B, T, K]."""
        return self.classifier(self.states(hidden, attention_mask))


class DecoderTail(nnx.Module):
    """The last layer of a Llama without windows, and its head for some tokens.

    `tail(hidden f32[B, T, d], attention_mask [B, T]) -> logits f32[B, T, V]` of the token
    that comes next, among `vocabulary`. The head is a matrix of its own, and the layer's
    matrices get biases of zero: the model computes the same, and BitFit has what to train.

    Args:
      model: a causal language model of Llama's family.
      vocabulary: i32[V], the tokens that may come next.
    """

    def __init__(self, model: Any, vocabulary: np.ndarray):
        config = model.config
        self.layer = with_biases(last_layer(model.model.layers))
        self.norm = nnx.clone(model.model.norm)
        self.rotary = (config.head_dim, config.rope_theta, config.rope_scaling)
        self.first_position = 0
        table = model.model.embed_tokens.embedding[...]
        if not config.tie_word_embeddings:
            table = model.lm_head.kernel[...].T
        self.classifier = nnx.Linear(
            config.hidden_size, len(vocabulary), use_bias=False, rngs=nnx.Rngs(0)
        )
        self.classifier.kernel[...] = table[vocabulary].T.astype(jnp.float32)

    def states(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """What the head reads, f32[B, T, d].

        Args:
          hidden: f32[B, T, d], what the last layer reads.
          attention_mask: [B, T], 1 for real tokens, padded on the right.
        """
        positions = self.first_position + count_positions(attention_mask)
        tables = rotary_tables(positions, *self.rotary)
        length = hidden.shape[1]
        seen = attention_mask_of(attention_mask, length, n_prompt=0, causal=True)
        mask = AttentionMask(plain=seen, sliding=None)
        return self.norm(self.layer(hidden, tables, mask))

    def __call__(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Logits f32[B, T, V]."""
        return self.classifier(self.states(hidden, attention_mask))


def with_biases(layer: nnx.Module) -> nnx.Module:
    """The layer, whose linear modules without a bias have got one of zeros.

    Args:
      layer: is changed.
    """
    for _, module in nnx.iter_modules(layer):
        if isinstance(module, nnx.Linear) and module.bias is None:
            module.bias = nnx.Param(jnp.zeros(module.out_features))
            module.use_bias = True
    return layer


class _AsItIs(nnx.Module):
    """In the place of a last norm: changes nothing."""

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return hidden


def decoder_states(
    model: Any, tokens: dict[str, np.ndarray], batch_size: int = 64
) -> np.ndarray:
    """What the last layer of a Llama reads.

    Args:
      model: a causal language model of Llama's family.
      tokens: {"input_ids", "attention_mask"}: [n, T].
      batch_size: rows that are computed at once.

    Returns:
      f32[n, T, d].
    """
    lower = frozen_decoder(model)
    return outputs(lower, tokens, model.config.hidden_size, batch_size)


def frozen_decoder(model: Any) -> nnx.Module:
    """The embeddings and all layers of a Llama but the last.

    Args:
      model: a causal language model of Llama's family.
    """
    lower = nnx.clone(model.model)
    lower.layers = lower_layers(lower.layers)
    lower.norm = _AsItIs()
    return lower
