"""T5 encoder-decoders (T5, T5 v1.1, FLAN-T5).

Layers stacked on a leading axis and run by `lax.scan`.

Module names follow Hugging Face's `T5ForConditionalGeneration` without the layer
number; the bias's table lies beside the stack, not inside its first layer.

Raffel et al., 2019, arXiv 1910.10683; gated GELU: Shazeer, 2020, arXiv 2002.05202;
FLAN: Chung et al., 2022, arXiv 2210.11416.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.roberta import RobertaClassificationHead
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
_TABLES = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
)  # copies of `shared` in many files
_UNUSED = (r"EncDecAttention\.relative_attention_bias\.weight$",)


class T5Model(nnx.Module):
    """Encoder and decoder without a head."""

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
        """The embedding that a prompt, put before the encoder's tokens, is made of."""
        return self.shared

    def shift_right(self, labels: jax.Array) -> jax.Array:
        """The decoder's input for these targets i32[B, U] (-100 where there is none).

        A start token first.
        """
        shifted = jnp.pad(
            labels[:, :-1],
            ((0, 0), (1, 0)),
            constant_values=self.config.decoder_start_token_id,
        )
        return jnp.where(shifted == -100, self.config.pad_token_id, shifted)

    def encode(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(the encoder's output [B, p + T, d], which of it is real bool[B, p + T]).

        P tokens are the prompt's.
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
        """The decoder's output [B, U, d] over the encoder's."""
        length = decoder_input_ids.shape[1]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        if decoder_attention_mask is not None:
            mask = mask & decoder_attention_mask.astype(bool)[:, None, None, :]
        bias = self.decoder.bias(jnp.arange(length, dtype=jnp.int32), length)
        hidden = self.shared(decoder_input_ids)
        hidden = run_stacked(
            self.decoder.block, hidden, bias, mask, encoded, real[:, None, None, :]
        )
        return self.decoder.final_layer_norm(hidden)

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
    ) -> jax.Array:
        """What a head reads, [B, U, d]."""
        if decoder_input_ids is None:
            raise ValueError(
                "an encoder-decoder needs decoder_input_ids; of targets: model.shift_right(labels)"
            )
        return self.decode(
            decoder_input_ids,
            decoder_attention_mask,
            *self.encode(input_ids, attention_mask),
        )


class T5ForConditionalGeneration(T5Model):
    """`model(input_ids i32[B, T], attention_mask, decoder_input_ids i32[B, U]) ->
    logits f32[B, U, V]`.

    Generation: `models.generate(model.next_logits, *model.start(input_ids,
    attention_mask, n), max_new_tokens=n)`.
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
        """Logits f32[..., V] of hidden states [..., d]."""
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
        with randomness(key):
            return self.head(
                self.hidden(
                    input_ids, attention_mask, decoder_input_ids, decoder_attention_mask
                )
            )

    def start(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        max_new_tokens: int,
    ) -> tuple[jax.Array, jax.Array, T5Cache]:
        """(start tokens [B, 1], their mask, cache with the encoder's output read), the
        arguments of `generate`.
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
        return (
            jnp.full((batch, 1), config.decoder_start_token_id, jnp.int32),
            jnp.ones((batch, 1), jnp.int32),
            cache,
        )

    def next_logits(
        self,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None,
        cache: T5Cache,
    ) -> tuple[jax.Array, T5Cache]:
        """(logits f32[B, V] after the last token, cache), as `generate` wants it."""
        length, room = decoder_input_ids.shape[1], cache.valid.shape[-1]
        real = decoder_attention_mask
        real = (
            jnp.ones(decoder_input_ids.shape, bool)
            if real is None
            else real.astype(bool)
        )
        valid = jax.lax.dynamic_update_slice_in_dim(
            cache.valid, real, cache.length, axis=1
        )
        positions = cache.length + jnp.arange(length, dtype=jnp.int32)
        mask = (jnp.arange(room) <= positions[:, None]) & valid[:, None, None, :]
        bias, read_mask = (
            self.decoder.bias(positions, room),
            cache.read_mask[:, None, None, :],
        )

        def step(block, hidden, slots):
            keys, values, *read = slots
            return block.extend(
                hidden, bias, mask, read, read_mask, (keys, values, cache.length)
            )

        slots = (cache.keys, cache.values, cache.read_keys, cache.read_values)
        hidden, new = scan_layers(
            self.decoder.block, step, self.shared(decoder_input_ids), slots
        )
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(
                old, part.astype(old.dtype), cache.length, axis=2
            )
            for old, part in zip((cache.keys, cache.values), new, strict=True)
        )
        cache = cache._replace(
            keys=keys, values=values, valid=valid, length=cache.length + length
        )
        return self.head(self.decoder.final_layer_norm(hidden[:, -1])), cache


class T5ForSequenceClassification(nnx.Module):
    """A head on the decoder's state at each row's last end-of-sequence token.

    Logits f32[B, num_labels].

    The decoder reads the input once more, shifted right. Every row must hold an
    end-of-sequence token.
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
        """What the head sees, [B, d]."""
        hidden = self.transformer.hidden(
            input_ids, attention_mask, self.transformer.shift_right(input_ids)
        )
        number = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None, :]
        last = jnp.max(
            jnp.where(input_ids == self.config.eos_token_id, number, 0), axis=1
        )
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        with randomness(key):
            return self.classification_head(self.features(input_ids, attention_mask))
