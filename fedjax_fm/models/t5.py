"""T5 encoder-decoders (T5, T5 v1.1, FLAN-T5): layers stacked on a leading axis and run by `lax.scan`.

Positions enter as a bias of the attention scores by bucketed distance, of which the first layer of either stack holds
the one table that all its layers use. No biases, RMSNorm, scores not scaled.

Module names follow Hugging Face's `T5ForConditionalGeneration` without the layer number; the bias's table lies beside
the stack, not inside its first layer.

Raffel et al., 2019, arXiv 1910.10683; gated GELU: Shazeer, 2020, arXiv 2002.05202; FLAN: Chung et al., 2022,
arXiv 2210.11416.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.roberta import RobertaClassificationHead
from fedjax_fm.models.stacked import run_stacked, scan_layers, stack
from fedjax_fm.models.virtual_tokens import prepend, seen_by_all, with_prefix
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class T5Config:
    """The fields of `config.json` that change the computation, under Hugging Face's names and defaults."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = None  # type: ignore[assignment]  # None: num_layers
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = None  # type: ignore[assignment]  # None: as tie_word_embeddings; T5 v1.1 does not
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    def __post_init__(self):
        if self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        if self.scale_decoder_outputs is None:
            object.__setattr__(self, "scale_decoder_outputs", self.tie_word_embeddings)
        check_activation("feed_forward_proj", self.activation)

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network has a gate."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """Its activation function; in "gated-gelu" the approximate one."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.gated and name == "gelu" else name


class T5Cache(NamedTuple):
    """What the decoder remembers, and what it looks up in the encoder's output."""

    keys: jax.Array  # [layers, B, max_length, heads, d_kv]
    values: jax.Array
    read_keys: jax.Array  # [layers, B, T, heads, d_kv], of the encoder's output
    read_values: jax.Array
    read_mask: jax.Array  # bool[B, T]
    valid: jax.Array  # bool[B, max_length]; False for slots not yet written
    length: jax.Array  # i32[], slots written


def relative_bucket(distance: jax.Array, bidirectional: bool, n_buckets: int, max_distance: int) -> jax.Array:
    """i32 bucket of `distance` = key position - query position; half of the buckets count, half grow logarithmically.

    One direction only: later keys share bucket 0 with distance 0.
    """
    if bidirectional:
        n_buckets //= 2
        bucket, distance = jnp.where(distance > 0, n_buckets, 0), jnp.abs(distance)
    else:
        bucket, distance = jnp.zeros_like(distance), jnp.maximum(-distance, 0)
    exact = n_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (n_buckets - exact)).astype(jnp.int32), n_buckets - 1)
    return bucket + jnp.where(distance < exact, distance, far)


def _norm(config: T5Config, rngs: nnx.Rngs, dtype: Any) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon, param_dtype=dtype, rngs=rngs)


class T5Attention(nnx.Module):
    """Attention with scores that are biased by distance and not scaled."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        d, inner = config.d_model, config.num_heads * config.d_kv
        self.kv_shape = (config.num_heads, config.d_kv)
        self.prefix = nnx.data(None)
        linear = lambda n_in, n_out: nnx.Linear(n_in, n_out, use_bias=False, param_dtype=dtype, rngs=rngs)
        self.q, self.k, self.v, self.o = linear(d, inner), linear(d, inner), linear(d, inner), linear(inner, d)

    def project(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(keys, values) [B, S, heads, d_kv] of what is attended to."""
        split = lambda x: x.reshape(*x.shape[:-1], *self.kv_shape)
        return split(self.k(source)), split(self.v(source))

    def __call__(
        self, hidden: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array | None, mask: jax.Array | None
    ) -> jax.Array:
        query = self.q(hidden).reshape(*hidden.shape[:-1], *self.kv_shape)
        n_text = keys.shape[1]
        keys, values, mask = with_prefix(self.prefix, keys, values, mask)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (keys.shape[1] - n_text, 0)))
        attended = jax.nn.dot_product_attention(query, keys, values, bias=bias, mask=mask, scale=1.0)
        return self.o(attended.reshape(*hidden.shape[:-1], -1))


class T5LayerSelfAttention(nnx.Module):
    """x + SelfAttention(norm(x))."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        self.SelfAttention = T5Attention(config, rngs, dtype)
        self.layer_norm = _norm(config, rngs, dtype)

    def __call__(self, hidden: jax.Array, bias: jax.Array, mask: jax.Array | None, past: tuple | None = None):
        """(hidden, (key, value) of these tokens); `past` is (keys, values, first free slot) of one layer."""
        normed = self.layer_norm(hidden)
        key, value = keys, values = self.SelfAttention.project(normed)
        if past is not None:
            *slots, start = past
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(slot, new.astype(slot.dtype), start, axis=1)
                for slot, new in zip(slots, (key, value), strict=True)
            )
        return hidden + self.SelfAttention(normed, keys, values, bias, mask), (key, value)


class T5LayerCrossAttention(nnx.Module):
    """x + EncDecAttention(norm(x)) over the encoder's output."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        self.EncDecAttention = T5Attention(config, rngs, dtype)
        self.layer_norm = _norm(config, rngs, dtype)

    def __call__(self, hidden: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array | None) -> jax.Array:
        return hidden + self.EncDecAttention(self.layer_norm(hidden), keys, values, None, mask)


class T5DenseReluDense(nnx.Module):
    """wo(act(wi(x))), or wo(act(wi_0(x)) * wi_1(x)) with a gate."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        linear = lambda n_in, n_out: nnx.Linear(n_in, n_out, use_bias=False, param_dtype=dtype, rngs=rngs)
        self.gated, self.act = config.gated, config.activation
        if config.gated:
            self.wi_0, self.wi_1 = linear(config.d_model, config.d_ff), linear(config.d_model, config.d_ff)
        else:
            self.wi = linear(config.d_model, config.d_ff)
        self.wo = linear(config.d_ff, config.d_model)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        if self.gated:
            return self.wo(ACTIVATIONS[self.act](self.wi_0(hidden)) * self.wi_1(hidden))
        return self.wo(ACTIVATIONS[self.act](self.wi(hidden)))


class T5LayerFF(nnx.Module):
    """x + DenseReluDense(norm(x))."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        self.DenseReluDense = T5DenseReluDense(config, rngs, dtype)
        self.layer_norm = _norm(config, rngs, dtype)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return hidden + self.DenseReluDense(self.layer_norm(hidden))


class T5Block(nnx.Module):
    """One layer: self-attention, in the decoder attention to the encoder's output, feed-forward network."""

    def __init__(self, config: T5Config, decoder: bool, rngs: nnx.Rngs, dtype: Any):
        middle = [T5LayerCrossAttention(config, rngs, dtype)] if decoder else []
        self.layer: Any = nnx.List([T5LayerSelfAttention(config, rngs, dtype), *middle, T5LayerFF(config, rngs, dtype)])

    def read(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(keys, values) that the decoder's layer looks up in the encoder's output."""
        return self.layer[1].EncDecAttention.project(encoded)

    def extend(self, hidden, bias, mask, read: tuple, read_mask: jax.Array | None, past: tuple | None = None):
        """A decoder layer: (hidden, (key, value)) with what the cache must remember of these tokens."""
        hidden, remembered = self.layer[0](hidden, bias, mask, past)
        hidden = self.layer[1](hidden, *read, read_mask)
        return self.layer[2](hidden), remembered

    def __call__(self, hidden: jax.Array, bias: jax.Array, mask: jax.Array | None, encoded: Any = None, read_mask=None):
        if encoded is not None:
            return self.extend(hidden, bias, mask, self.read(encoded), read_mask)[0]
        return self.layer[1](self.layer[0](hidden, bias, mask)[0])


class T5Stack(nnx.Module):
    """All layers of the encoder or the decoder, the table of their bias, and the last norm."""

    def __init__(self, config: T5Config, decoder: bool, rngs: nnx.Rngs, dtype: Any):
        self.buckets = (not decoder, config.relative_attention_num_buckets, config.relative_attention_max_distance)
        self.relative_attention_bias = nnx.Embed(
            config.relative_attention_num_buckets, config.num_heads, param_dtype=dtype, rngs=rngs
        )
        n_layers = config.num_decoder_layers if decoder else config.num_layers
        self.block = stack(lambda r: T5Block(config, decoder, r, dtype), n_layers, rngs)
        self.final_layer_norm = _norm(config, rngs, dtype)

    def bias(self, query_positions: jax.Array, n_keys: int) -> jax.Array:
        """[1, heads, T, S] of queries at `query_positions` i32[T] and keys at 0, ..., S - 1."""
        distance = jnp.arange(n_keys, dtype=jnp.int32)[None, :] - query_positions[:, None]
        return self.relative_attention_bias(relative_bucket(distance, *self.buckets)).transpose(2, 0, 1)[None]


_STACKED = ("encoder.block", "decoder.block")
_TABLE = "block.0.layer.0.SelfAttention.relative_attention_bias"
_RENAMED = tuple((f"{side}.relative_attention_bias", f"{side}.{_TABLE}") for side in ("encoder", "decoder"))
_COPIES = (r"(encoder|decoder)\.embed_tokens\.weight$", r"EncDecAttention\.relative_attention_bias\.weight$")


class T5Model(nnx.Module):
    """Encoder and decoder without a head."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.shared = nnx.Embed(config.vocab_size, config.d_model, param_dtype=dtype, rngs=rngs)
        self.encoder = T5Stack(config, False, rngs, dtype)
        self.decoder = T5Stack(config, True, rngs, dtype)
        self.prompt = nnx.data(None)

    @property
    def vocabulary(self) -> nnx.Embed:
        """The embedding that a prompt, put before the encoder's tokens, is made of."""
        return self.shared

    def shift_right(self, labels: jax.Array) -> jax.Array:
        """The decoder's input for these targets i32[B, U] (-100 where there is none): a start token first."""
        shifted = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=self.config.decoder_start_token_id)
        return jnp.where(shifted == -100, self.config.pad_token_id, shifted)

    def encode(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """(the encoder's output [B, p + T, d], which of it is real bool[B, p + T]); p tokens are the prompt's."""
        hidden, n_prompt = prepend(self.prompt, self.shared(input_ids))
        real = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
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
        hidden = run_stacked(self.decoder.block, hidden, bias, mask, encoded, real[:, None, None, :])
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
            raise ValueError("an encoder-decoder needs decoder_input_ids; of targets: model.shift_right(labels)")
        return self.decode(decoder_input_ids, decoder_attention_mask, *self.encode(input_ids, attention_mask))


class T5ForConditionalGeneration(T5Model):
    """`model(input_ids i32[B, T], attention_mask, decoder_input_ids i32[B, U]) -> logits f32[B, U, V]`.

    Generation: `models.generate(model.next_logits, *model.start(input_ids, attention_mask, n), max_new_tokens=n)`.
    """

    hugging_face: ClassVar[Naming] = Naming(_STACKED, renamed=_RENAMED, ignored=(*_COPIES, r"^lm_head\."))

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        super().__init__(config, rngs, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = nnx.Linear(config.d_model, config.vocab_size, use_bias=False, param_dtype=dtype, rngs=rngs)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states [..., d]."""
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden).astype(jnp.float32)
        embedding = self.shared.embedding[...]
        return jnp.einsum("...d,vd->...v", hidden, embedding, preferred_element_type=jnp.float32)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        with randomness(key):
            return self.head(self.hidden(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask))

    def start(
        self, input_ids: jax.Array, attention_mask: jax.Array | None, max_new_tokens: int
    ) -> tuple[jax.Array, jax.Array, T5Cache]:
        """(start tokens [B, 1], their mask, cache with the encoder's output read), the arguments of `generate`."""
        encoded, real = self.encode(input_ids, attention_mask)
        read = lambda block, carry, _: (carry, block.read(encoded))
        read_keys, read_values = scan_layers(self.decoder.block, read, jnp.int32(0))[1]
        config, batch = self.config, input_ids.shape[0]
        room = 1 + max_new_tokens
        shape = (config.num_decoder_layers, batch, room, config.num_heads, config.d_kv)
        slots = jnp.zeros(shape, self.shared.embedding.dtype)
        unwritten = jnp.zeros((batch, room), bool)
        cache = T5Cache(slots, slots, read_keys, read_values, real, unwritten, jnp.int32(0))
        return jnp.full((batch, 1), config.decoder_start_token_id, jnp.int32), jnp.ones((batch, 1), jnp.int32), cache

    def next_logits(
        self, decoder_input_ids: jax.Array, decoder_attention_mask: jax.Array | None, cache: T5Cache
    ) -> tuple[jax.Array, T5Cache]:
        """(logits f32[B, V] after the last token, cache), as `generate` wants it."""
        length, room = decoder_input_ids.shape[1], cache.valid.shape[-1]
        real = decoder_attention_mask
        real = jnp.ones(decoder_input_ids.shape, bool) if real is None else real.astype(bool)
        valid = jax.lax.dynamic_update_slice_in_dim(cache.valid, real, cache.length, axis=1)
        positions = cache.length + jnp.arange(length, dtype=jnp.int32)
        mask = (jnp.arange(room) <= positions[:, None]) & valid[:, None, None, :]
        bias, read_mask = self.decoder.bias(positions, room), cache.read_mask[:, None, None, :]

        def step(block, hidden, slots):
            keys, values, *read = slots
            return block.extend(hidden, bias, mask, read, read_mask, (keys, values, cache.length))

        slots = (cache.keys, cache.values, cache.read_keys, cache.read_values)
        hidden, new = scan_layers(self.decoder.block, step, self.shared(decoder_input_ids), slots)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, part.astype(old.dtype), cache.length, axis=2)
            for old, part in zip((cache.keys, cache.values), new, strict=True)
        )
        cache = cache._replace(keys=keys, values=values, valid=valid, length=cache.length + length)
        return self.head(self.decoder.final_layer_norm(hidden[:, -1])), cache


class T5ForSequenceClassification(nnx.Module):
    """A head on the decoder's state at each row's last end-of-sequence token: logits f32[B, num_labels].

    The decoder reads the input once more, shifted right. Every row must hold an end-of-sequence token.
    """

    hugging_face: ClassVar[Naming] = Naming(
        _STACKED, ("", "transformer."), _RENAMED, new=("classification_head",), ignored=(*_COPIES, r"^lm_head\.")
    )

    def __init__(self, config: T5Config, num_labels: int, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.transformer = T5Model(config, rngs, dtype)
        self.classification_head = RobertaClassificationHead(config.d_model, num_labels, rngs)

    def features(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """What the head sees, [B, d]."""
        hidden = self.transformer.hidden(input_ids, attention_mask, self.transformer.shift_right(input_ids))
        number = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None, :]
        last = jnp.max(jnp.where(input_ids == self.config.eos_token_id, number, 0), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        with randomness(key):
            return self.classification_head(self.features(input_ids, attention_mask))
