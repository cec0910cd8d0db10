"""Whisper: sound in, text or a class out.

Layers are stacked on a leading axis and run by `lax.scan`. Module names follow Hugging
Face's `WhisperForConditionalGeneration` without the layer number.

References:
  Radford et al., 2022, Robust Speech Recognition via Large-Scale Weak Supervision, arXiv
  2212.04356.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.language_modeling import shifted
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.slots import real_tokens, seen_by, written
from fedjax_fm.models.stacked import scan_layers
from fedjax_fm.models.weights import Naming
from fedjax_fm.models.whisper_layers import (
    WhisperCache,
    WhisperConfig,
    WhisperDecoder,
    WhisperEncoder,
)


class WhisperModel(nnx.Module):
    """Encoder and decoder without a head.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
    """

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.encoder = WhisperEncoder(config, rngs, dtype)
        self.decoder = WhisperDecoder(config, rngs, dtype)

    def __call__(
        self,
        input_features: jax.Array,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
    ) -> jax.Array:
        """The decoder's hidden states [B, U, d], normalised.

        Args:
          input_features: [B, M, frames], of `models.log_mel`.
          decoder_input_ids: i32[B, U]; must be given.
          decoder_attention_mask: [B, U], 1 for real tokens; None: all are.

        Raises:
          ValueError: no `decoder_input_ids`, or sizes that the model does not have.
        """
        if decoder_input_ids is None:
            raise ValueError(
                "an encoder-decoder needs decoder_input_ids; of targets: "
                "model.shift_right(labels)"
            )
        encoded = self.encoder(input_features)
        return self.decoder(decoder_input_ids, decoder_attention_mask, encoded)


class WhisperForConditionalGeneration(nnx.Module):
    """Whisper with its language-modelling head: sound in, logits of tokens out.

    `tasks.language_modeling` trains it on the columns `input_features` and `labels`.
    Text begins with tokens that say language and task; `start` takes them:
    `models.generate(model.next_logits, *model.start(features, first, n),
    max_new_tokens=n)` writes what was said.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations; logits are f32.

    References:
      Radford et al., 2022, arXiv 2212.04356.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.WhisperConfig(
      ...     vocab_size=30, num_mel_bins=4, d_model=8, encoder_layers=2,
      ...     decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
      ...     max_source_positions=10,
      ... )
      >>> def run(features, answers):
      ...     model = models.WhisperForConditionalGeneration(config, nnx.Rngs(0))
      ...     return model(features, model.shift_right(answers))
      >>> features, answers = jnp.ones((3, 4, 20)), jnp.ones((3, 2), jnp.int32)
      >>> jax.eval_shape(run, features, answers).shape  # traced, not computed
      (3, 2, 30)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layers", "decoder.layers"),
        prefixes=("", "model."),
        embedding=("model", "decoder", "embed_tokens", "embedding"),
        copies=("proj_out.weight",),
    )
    encoder_columns: ClassVar[tuple[str, ...]] = ("input_features",)

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.model = WhisperModel(config, rngs, dtype)

    def shift_right(self, labels: jax.Array) -> jax.Array:
        """The decoder's input for these targets: a start token and all but the last.

        Args:
          labels: i32[B, U], -100 where there is no target.

        Returns:
          i32[B, U].
        """
        config = self.config
        return shifted(labels, config.decoder_start_token_id, config.pad_token_id)

    def encode(self, input_features: jax.Array) -> jax.Array:
        """The encoder's output [B, T, d].

        Args:
          input_features: [B, M, frames], of `models.log_mel`.
        """
        return self.model.encoder(input_features)

    def hidden(
        self,
        input_features: jax.Array,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states [B, U, d] that the head reads.

        Args:
          input_features: [B, M, frames], of `models.log_mel`.
          decoder_input_ids: i32[B, U]; must be given, see `shift_right`.
          decoder_attention_mask: [B, U], 1 for real tokens; None: all are.

        Raises:
          ValueError: no `decoder_input_ids`.
        """
        return self.model(input_features, decoder_input_ids, decoder_attention_mask)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states.

        Args:
          hidden: [..., d].
        """
        table = self.model.decoder.embed_tokens.embedding[...]
        return jnp.einsum(
            "...d,vd->...v", hidden, table, preferred_element_type=jnp.float32
        )

    def __call__(
        self,
        input_features: jax.Array,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32[B, U, V] of the decoder's tokens.

        Args:
          input_features: [B, M, frames], of `models.log_mel`.
          decoder_input_ids: i32[B, U]; must be given, see `shift_right`.
          decoder_attention_mask: [B, U], 1 for real tokens; None: all are.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.

        Raises:
          ValueError: no `decoder_input_ids`.
        """
        with randomness(key):
            hidden = self.hidden(
                input_features, decoder_input_ids, decoder_attention_mask
            )
            return self.head(hidden)

    def start(
        self, input_features: jax.Array, first_ids: jax.Array, max_new_tokens: int
    ) -> tuple[jax.Array, jax.Array, WhisperCache]:
        """What `generate` takes behind `next_logits`, after the encoder has listened.

        Args:
          input_features: [B, M, frames], of `models.log_mel`.
          first_ids: i32[B, U], with which every text begins.
          max_new_tokens: of an answer; the cache has room for them.

        Returns:
          (first_ids, their mask i32[B, U], cache).
        """
        encoded, config = self.encode(input_features), self.config

        def read(layer, carry, _):
            return carry, layer.read(encoded)

        layers = self.model.decoder.layers
        read_keys, read_values = scan_layers(layers, read, jnp.int32(0))[1]
        batch, length = first_ids.shape
        heads = config.decoder_attention_heads
        room = length + max_new_tokens
        shape = (config.decoder_layers, batch, room, heads, config.d_model // heads)
        slots = jnp.zeros(shape, encoded.dtype)
        cache = WhisperCache(
            keys=slots,
            values=slots,
            read_keys=read_keys,
            read_values=read_values,
            valid=jnp.zeros((batch, room), bool),
            length=jnp.int32(0),
        )
        return first_ids, jnp.ones_like(first_ids), cache

    def next_logits(
        self,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None,
        cache: WhisperCache,
    ) -> tuple[jax.Array, WhisperCache]:
        """Logits after the last token alone, as `generate` needs them.

        Args:
          decoder_input_ids: i32[B, U], the new tokens.
          decoder_attention_mask: [B, U] of these tokens, 1 for real ones; None: all
            are.
          cache: of `start`.

        Returns:
          (logits f32[B, V], cache).
        """
        real = real_tokens(decoder_input_ids, decoder_attention_mask)
        valid, mask = seen_by(cache.valid, real, cache.length)

        def step(layer, hidden, slots):
            keys, values, *read = slots
            return layer.extend(hidden, mask, read, (keys, values, cache.length))

        decoder = self.model.decoder
        slots = (cache.keys, cache.values, cache.read_keys, cache.read_values)
        hidden = decoder.embed(decoder_input_ids, cache.length)
        hidden, new = scan_layers(decoder.layers, step, hidden, slots)
        keys, values = written(slots[:2], new, cache.length, axis=2)
        cache = cache._replace(
            keys=keys, values=values, valid=valid, length=cache.length + real.shape[1]
        )
        return self.head(decoder.layer_norm(hidden[:, -1])), cache


class WhisperForAudioClassification(nnx.Module):
    """Whisper's encoder with a classifier on the mean over time of a projection.

    Args:
      config: sizes; the decoder's are not read.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of the encoder's weights and activations; projection and classifier stay
        f32.

    References:
      Radford et al., 2022, arXiv 2212.04356 (the encoder; the head is transformers').

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.WhisperConfig(
      ...     num_mel_bins=4, d_model=8, encoder_layers=2, encoder_attention_heads=2,
      ...     decoder_attention_heads=2, max_source_positions=10,
      ... )
      >>> def run(inputs):
      ...     return models.WhisperForAudioClassification(config, 2, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 4, 20))).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layers",),
        prefixes=("", "model."),
        new=("projector", "classifier"),
        ignored=(r"^(model\.)?decoder\.", r"^proj_out\.weight$"),
    )

    def __init__(
        self,
        config: WhisperConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.encoder = WhisperEncoder(config, rngs, dtype)
        self.projector = classifier(config.d_model, config.classifier_proj_size, rngs)
        self.classifier = classifier(config.classifier_proj_size, num_labels, rngs)

    def features(
        self, input_features: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """What the head sees, the mean of the encoder's states over time, f32[B, d].

        Args:
          input_features: [B, M, frames], of `models.log_mel`.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        with randomness(key):
            return self.encoder(input_features).astype(jnp.float32).mean(axis=1)

    def __call__(
        self, input_features: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits f32[B, num_labels] of sound.

        Args:
          input_features: [B, M, frames], of `models.log_mel`.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        # transformers projects before it takes the mean, which is the same.
        projected = self.projector(self.features(input_features, key))
        return self.classifier(projected)
