"""T5 encoder-decoders (T5, T5 v1.1, FLAN-T5).

Layers are stacked on a leading axis and run by `lax.scan`. Module names follow Hugging
Face's `T5ForConditionalGeneration` without the layer number; the bias's table lies
beside the stack, not inside its first layer.

References:
  Raffel et al., 2019, arXiv 1910.10683; gated GELU: Shazeer, 2020, arXiv 2002.05202;
  FLAN: Chung et al., 2022, arXiv 2210.11416.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.language_modeling import shifted
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.roberta import RobertaClassificationHead
from fedjax_fm.models.slots import real_tokens, seen_by, written
from fedjax_fm.models.stacked import run_stacked, scan_layers
from fedjax_fm.models.t5_layers import T5Cache, T5Config, T5Stack
from fedjax_fm.models.virtual_tokens import prepend, seen_by_all
from fedjax_fm.models.weights import Naming

_STACKED = ("encoder.block", "decoder.block")
_TABLE = "block.0.layer.0.SelfAttention.relative_attention_bias"
_RENAMED = tuple(
    (f"{side}.relative_attention_bias", f"{side}.{_TABLE}")
    for side in ("encoder", "decoder")
)
# Copies of `shared` in many files.
_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_UNUSED = (r"EncDecAttention\.relative_attention_bias\.weight$",)


class T5Model(nnx.Module):
    """Encoder and decoder without a head.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
    """

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.shared = nnx.Embed(
            config.vocab_size, config.d_model, param_dtype=dtype, rngs=rngs
        )
        self.encoder = T5Stack(config, False, rngs, dtype)
        self.decoder = T5Stack(config, True, rngs, dtype)
        self.prompt = nnx.data(None)

    @property
    def vocabulary(self) -> nnx.Embed:
        """The embedding of tokens, of which a trained prompt of the encoder is made."""
        return self.shared

    def shift_right(self, labels: jax.Array) -> jax.Array:
        """The decoder's input for these targets: a start token and all but the last.

        Args:
          labels: i32[B, U], -100 where there is no target.

        Returns:
          i32[B, U].
        """
        config = self.config
        return shifted(labels, config.decoder_start_token_id, config.pad_token_id)

    def encode(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The encoder's output, that of a prompt of p tokens included.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.

        Returns:
          (hidden [B, p + T, d], which of it is real bool[B, p + T]).
        """
        hidden, n_prompt = prepend(self.prompt, self.shared(input_ids))
        real = (
            jnp.ones(input_ids.shape, bool)
            if attention_mask is None
            else attention_mask.astype(bool)
        )
        real = seen_by_all(real, n_prompt)
        length = hidden.shape[1]
        bias = self.encoder.bias(jnp.arange(length, dtype=jnp.int32), length)
        hidden = run_stacked(self.encoder.block, hidden, bias, real[:, None, None, :])
        return self.encoder.final_layer_norm(hidden), real

    def decode(
        self,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None,
        encoded: jax.Array,
        real: jax.Array,
    ) -> jax.Array:
        """The decoder's output [B, U, d] over the encoder's.

        Args:
          decoder_input_ids: i32[B, U].
          decoder_attention_mask: [B, U], 1 for real tokens; None: all are.
          encoded: [B, p + T, d], of `encode`.
          real: bool[B, p + T], of `encode`.
        """
        length = decoder_input_ids.shape[1]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        if decoder_attention_mask is not None:
            mask = mask & decoder_attention_mask.astype(bool)[:, None, None, :]
        bias = self.decoder.bias(jnp.arange(length, dtype=jnp.int32), length)
        hidden = self.shared(decoder_input_ids)
        context = (bias, mask, encoded, real[:, None, None, :])
        hidden = run_stacked(self.decoder.block, hidden, *context)
        return self.decoder.final_layer_norm(hidden)

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states [B, U, d] that a head reads.

        Args:
          input_ids: i32[B, T], the encoder's tokens.
          attention_mask: [B, T], 1 for real tokens; None: all are.
          decoder_input_ids: i32[B, U]; must be given.
          decoder_attention_mask: [B, U], 1 for real tokens; None: all are.

        Raises:
          ValueError: no `decoder_input_ids`.
        """
        if decoder_input_ids is None:
            raise ValueError(
                "an encoder-decoder needs decoder_input_ids; of targets: "
                "model.shift_right(labels)"
            )
        encoded, real = self.encode(input_ids, attention_mask)
        return self.decode(decoder_input_ids, decoder_attention_mask, encoded, real)


class T5ForConditionalGeneration(T5Model):
    """T5 with its language-modelling head: two texts in, logits of the second out.

    `models.generate(model, prompts, max_new_tokens=n)` generates with it.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations; logits are f32.

    References:
      Raffel et al., 2019, arXiv 1910.10683.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.T5Config(
      ...     vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2
      ... )
      >>> def run(questions, answers):
      ...     model = models.T5ForConditionalGeneration(config, nnx.Rngs(0))
      ...     return model(questions, decoder_input_ids=model.shift_right(answers))
      >>> questions, answers = jnp.ones((3, 5), jnp.int32), jnp.ones((3, 2), jnp.int32)
      >>> jax.eval_shape(run, questions, answers).shape  # traced, not computed
      (3, 2, 30)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=_STACKED,
        renamed=_RENAMED,
        ignored=(*_UNUSED, r"^lm_head\.weight$"),
        embedding=("shared", "embedding"),
        copies=_TABLES,
    )

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        super().__init__(config, rngs, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = nnx.Linear(
                config.d_model,
                config.vocab_size,
                use_bias=False,
                param_dtype=dtype,
                rngs=rngs,
            )

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states.

        Args:
          hidden: [..., d].
        """
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden).astype(jnp.float32)
        embedding = self.shared.embedding[...]
        return jnp.einsum(
            "...d,vd->...v", hidden, embedding, preferred_element_type=jnp.float32
        )

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32[B, U, V] of the decoder's tokens.

        Args:
          input_ids: i32[B, T], the encoder's tokens.
          attention_mask: [B, T], 1 for real tokens; None: all are.
          decoder_input_ids: i32[B, U]; must be given, see `shift_right`.
          decoder_attention_mask: [B, U], 1 for real tokens; None: all are.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.

        Raises:
          ValueError: no `decoder_input_ids`.
        """
        with randomness(key):
            hidden = self.hidden(
                input_ids, attention_mask, decoder_input_ids, decoder_attention_mask
            )
            return self.head(hidden)

    def start(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        max_new_tokens: int,
    ) -> tuple[jax.Array, jax.Array, T5Cache]:
        """The arguments of `generate` after the prompt was read by the encoder.

        Args:
          input_ids: i32[B, T], the prompts.
          attention_mask: [B, T], 1 for real tokens; None: all are.
          max_new_tokens: of an answer; the cache has room for them.

        Returns:
          (start tokens i32[B, 1], their mask i32[B, 1], cache).
        """
        encoded, real = self.encode(input_ids, attention_mask)

        def read(block, carry, _):
            return (carry, block.read(encoded))

        read_keys, read_values = scan_layers(self.decoder.block, read, jnp.int32(0))[1]
        config, batch = self.config, input_ids.shape[0]
        room = 1 + max_new_tokens
        shape = (config.num_decoder_layers, batch, room, config.num_heads, config.d_kv)
        slots = jnp.zeros(shape, self.shared.embedding.dtype)
        unwritten = jnp.zeros((batch, room), bool)
        cache = T5Cache(
            keys=slots,
            values=slots,
            read_keys=read_keys,
            read_values=read_values,
            read_mask=real,
            valid=unwritten,
            length=jnp.int32(0),
        )
        first = jnp.full((batch, 1), config.decoder_start_token_id, jnp.int32)
        return first, jnp.ones((batch, 1), jnp.int32), cache

    def next_logits(
        self,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None,
        cache: T5Cache,
    ) -> tuple[jax.Array, T5Cache]:
        """Logits after the last token alone, as `generate` needs them.

        Args:
          decoder_input_ids: i32[B, U], the new tokens.
          decoder_attention_mask: [B, U] of these tokens, 1 for real ones; None: all
            are.
          cache: of `start`.

        Returns:
          (logits f32[B, V], cache).
        """
        length, room = decoder_input_ids.shape[1], cache.valid.shape[-1]
        real = real_tokens(decoder_input_ids, decoder_attention_mask)
        valid, mask = seen_by(cache.valid, real, cache.length)
        positions = cache.length + jnp.arange(length, dtype=jnp.int32)
        bias = self.decoder.bias(positions, room)
        read_mask = cache.read_mask[:, None, None, :]

        def step(block, hidden, slots):
            keys, values, *read = slots
            past = (keys, values, cache.length)
            return block.extend(
                hidden, bias, mask, read=read, read_mask=read_mask, past=past
            )

        slots = (cache.keys, cache.values, cache.read_keys, cache.read_values)
        hidden, new = scan_layers(
            self.decoder.block, step, self.shared(decoder_input_ids), slots
        )
        keys, values = written(slots[:2], new, cache.length, axis=2)
        cache = cache._replace(
            keys=keys, values=values, valid=valid, length=cache.length + length
        )
        return self.head(self.decoder.final_layer_norm(hidden[:, -1])), cache


class T5ForSequenceClassification(nnx.Module):
    """T5 with a classification head: logits f32[B, num_labels].

    The head reads the decoder's state at each row's last end-of-sequence token. The
    decoder reads the input once more, shifted right. Every row must hold an
    end-of-sequence token.

    Args:
      config: sizes.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of T5's weights and activations; the head stays f32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.T5Config(
      ...     vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2
      ... )
      >>> def run(inputs):
      ...     return models.T5ForSequenceClassification(config, 2, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=_STACKED,
        prefixes=("", "transformer."),
        renamed=_RENAMED,
        new=("classification_head",),
        ignored=(*_UNUSED, r"^lm_head\.weight$"),
        embedding=("transformer", "shared", "embedding"),
        copies=_TABLES,
    )

    def __init__(
        self,
        config: T5Config,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.transformer = T5Model(config, rngs, dtype)
        self.classification_head = RobertaClassificationHead(
            config.d_model, num_labels, rngs
        )

    def features(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """What the head sees, [B, d].

        Args:
          input_ids: i32[B, T], each row with an end-of-sequence token.
          attention_mask: [B, T], 1 for real tokens; None: all are.
        """
        again = self.transformer.shift_right(input_ids)
        hidden = self.transformer.hidden(input_ids, attention_mask, again)
        number = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None, :]
        ends = input_ids == self.config.eos_token_id
        last = jnp.max(jnp.where(ends, number, 0), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32[B, num_labels] of tokens.

        Args:
          input_ids: i32[B, T], each row with an end-of-sequence token.
          attention_mask: [B, T], 1 for real tokens; None: all are.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        with randomness(key):
            features = self.features(input_ids, attention_mask)
            return self.classification_head(features)
