"""The layers of T5: configuration, attention with its bias by bucketed distance,
feed-forward networks, stacks.

Positions enter as a bias of the attention scores, of which the first layer of either
stack holds the one table that all its layers use. No biases, RMSNorm, scores not
scaled.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.stacked import stack
from fedjax_fm.models.virtual_tokens import with_prefix


@dataclass(frozen=True)
class T5Config:
    """The fields of `config.json` that change the computation, under Hugging Face's
    names and defaults.
    """

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


def relative_bucket(
    distance: jax.Array, bidirectional: bool, n_buckets: int, max_distance: int
) -> jax.Array:
    """i32 bucket of `distance` = key position - query position.

    Half of the buckets count, half grow logarithmically.

    One direction only: later keys share bucket 0 with distance 0.
    """
    if bidirectional:
        n_buckets //= 2
        bucket, distance = jnp.where(distance > 0, n_buckets, 0), jnp.abs(distance)
    else:
        bucket, distance = jnp.zeros_like(distance), jnp.maximum(-distance, 0)
    exact = n_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(
        max_distance / exact
    )
    far = jnp.minimum(
        exact + (ratio * (n_buckets - exact)).astype(jnp.int32), n_buckets - 1
    )
    return bucket + jnp.where(distance < exact, distance, far)


def _norm(config: T5Config, rngs: nnx.Rngs, dtype: Any) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        config.d_model, epsilon=config.layer_norm_epsilon, param_dtype=dtype, rngs=rngs
    )


class T5Attention(nnx.Module):
    """Attention with scores that are biased by distance and not scaled."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        d, inner = config.d_model, config.num_heads * config.d_kv
        self.kv_shape = (config.num_heads, config.d_kv)
        self.prefix = nnx.data(None)

        def linear(n_in, n_out):
            return nnx.Linear(n_in, n_out, use_bias=False, param_dtype=dtype, rngs=rngs)

        self.q, self.k, self.v, self.o = (
            linear(d, inner),
            linear(d, inner),
            linear(d, inner),
            linear(inner, d),
        )

    def project(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(keys, values) [B, S, heads, d_kv] of what is attended to."""

        def split(x):
            return x.reshape(*x.shape[:-1], *self.kv_shape)

        return split(self.k(source)), split(self.v(source))

    def __call__(
        self,
        hidden: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
    ) -> jax.Array:
        query = self.q(hidden).reshape(*hidden.shape[:-1], *self.kv_shape)
        n_text = keys.shape[1]
        keys, values, mask = with_prefix(self.prefix, keys, values, mask)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (keys.shape[1] - n_text, 0)))
        attended = jax.nn.dot_product_attention(
            query, keys, values, bias=bias, mask=mask, scale=1.0
        )
        return self.o(attended.reshape(*hidden.shape[:-1], -1))


class T5LayerSelfAttention(nnx.Module):
    """x + SelfAttention(norm(x))."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        self.SelfAttention = T5Attention(config, rngs, dtype)
        self.layer_norm = _norm(config, rngs, dtype)

    def __call__(
        self,
        hidden: jax.Array,
        bias: jax.Array,
        mask: jax.Array | None,
        past: tuple | None = None,
    ):
        """(hidden, (key, value) of these tokens).

        `past` is (keys, values, first free slot) of one layer.
        """
        normed = self.layer_norm(hidden)
        key, value = keys, values = self.SelfAttention.project(normed)
        if past is not None:
            *slots, start = past
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(
                    slot, new.astype(slot.dtype), start, axis=1
                )
                for slot, new in zip(slots, (key, value), strict=True)
            )
        return hidden + self.SelfAttention(normed, keys, values, bias, mask), (
            key,
            value,
        )


class T5LayerCrossAttention(nnx.Module):
    """x + EncDecAttention(norm(x)) over the encoder's output."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        self.EncDecAttention = T5Attention(config, rngs, dtype)
        self.layer_norm = _norm(config, rngs, dtype)

    def __call__(
        self,
        hidden: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        mask: jax.Array | None,
    ) -> jax.Array:
        return hidden + self.EncDecAttention(
            self.layer_norm(hidden), keys, values, None, mask
        )


class T5DenseReluDense(nnx.Module):
    """wo(act(wi(x))), or wo(act(wi_0(x)) * wi_1(x)) with a gate."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        def linear(n_in, n_out):
            return nnx.Linear(n_in, n_out, use_bias=False, param_dtype=dtype, rngs=rngs)

        self.gated, self.act = config.gated, config.activation
        if config.gated:
            self.wi_0, self.wi_1 = (
                linear(config.d_model, config.d_ff),
                linear(config.d_model, config.d_ff),
            )
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
    """One layer: self-attention, in the decoder attention to the encoder's output,
    feed-forward network.
    """

    def __init__(self, config: T5Config, decoder: bool, rngs: nnx.Rngs, dtype: Any):
        middle = [T5LayerCrossAttention(config, rngs, dtype)] if decoder else []
        self.layer: Any = nnx.List(
            [
                T5LayerSelfAttention(config, rngs, dtype),
                *middle,
                T5LayerFF(config, rngs, dtype),
            ]
        )

    def read(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(keys, values) that the decoder's layer looks up in the encoder's output."""
        return self.layer[1].EncDecAttention.project(encoded)

    def extend(
        self,
        hidden,
        bias,
        mask,
        read: tuple,
        read_mask: jax.Array | None,
        past: tuple | None = None,
    ):
        """A decoder layer: (hidden, (key, value)) with what the cache must remember of
        these tokens.
        """
        hidden, remembered = self.layer[0](hidden, bias, mask, past)
        hidden = self.layer[1](hidden, *read, read_mask)
        return self.layer[2](hidden), remembered

    def __call__(
        self,
        hidden: jax.Array,
        bias: jax.Array,
        mask: jax.Array | None,
        encoded: Any = None,
        read_mask=None,
    ):
        if encoded is not None:
            return self.extend(hidden, bias, mask, self.read(encoded), read_mask)[0]
        return self.layer[1](self.layer[0](hidden, bias, mask)[0])


class T5Stack(nnx.Module):
    """All layers of the encoder or the decoder, the table of their bias, and the last norm."""

    def __init__(self, config: T5Config, decoder: bool, rngs: nnx.Rngs, dtype: Any):
        self.buckets = (
            not decoder,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )
        self.relative_attention_bias = nnx.Embed(
            config.relative_attention_num_buckets,
            config.num_heads,
            param_dtype=dtype,
            rngs=rngs,
        )
        n_layers = config.num_decoder_layers if decoder else config.num_layers
        self.block = stack(lambda r: T5Block(config, decoder, r, dtype), n_layers, rngs)
        self.final_layer_norm = _norm(config, rngs, dtype)

    def bias(self, query_positions: jax.Array, n_keys: int) -> jax.Array:
        """[1, heads, T, S] of queries at `query_positions` i32[T] and keys at 0, ..., S - 1."""
        distance = (
            jnp.arange(n_keys, dtype=jnp.int32)[None, :] - query_positions[:, None]
        )
        return self.relative_attention_bias(
            relative_bucket(distance, *self.buckets)
        ).transpose(2, 0, 1)[None]
