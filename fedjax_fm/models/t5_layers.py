"""The layers of T5: configuration, attention, feed-forward networks, stacks.

Positions enter as a bias of the attention scores, by bucketed distance; the first layer
of either stack holds the one table that all its layers use. No biases, RMSNorm, scores
not scaled.

References:
  Raffel et al., 2019, arXiv 1910.10683, section 2.1.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.attention import dot_product
from fedjax_fm.models.slots import written
from fedjax_fm.models.stacked import stack
from fedjax_fm.models.virtual_tokens import with_prefix


@dataclass(frozen=True)
class T5Config:
    """A T5's sizes: the fields of `config.json` that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      vocab_size: V, rows of the table of tokens.
      d_model: d, width of the hidden states.
      d_kv: width of a head.
      d_ff: width inside the feed-forward network.
      num_layers: encoder layers.
      num_decoder_layers: decoder layers; None: as many as `num_layers`.
      num_heads: heads.
      relative_attention_num_buckets: buckets of distances.
      relative_attention_max_distance: tokens from which on all distances share a
        bucket.
      layer_norm_epsilon: what RMSNorm adds to the mean square.
      feed_forward_proj: an activation's name, "gated-" before it for a gated network.
      tie_word_embeddings: whether the head is the table of tokens.
      scale_decoder_outputs: whether the head reads the hidden states times
        d_model^-0.5;
        None: as `tie_word_embeddings` (T5 v1.1 does not).
      pad_token_id: the padding's id, which stands for a missing target.
      eos_token_id: the end's id, where the classifier reads.
      decoder_start_token_id: the decoder's first token.

    Raises:
      ValueError: an unknown activation.

    Example:
      >>> T5Config(feed_forward_proj="gated-gelu").activation
      'gelu_new'
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = None  # type: ignore[assignment]
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = None  # type: ignore[assignment]
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
        """The feed-forward network's activation; "gated-gelu" means gelu_new."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.gated and name == "gelu" else name


class T5Cache(NamedTuple):
    """The keys and values that the decoder looks up."""

    keys: jax.Array  # [layers, B, max_length, heads, d_kv], of the decoder's tokens
    values: jax.Array  # [layers, B, max_length, heads, d_kv]
    read_keys: jax.Array  # [layers, B, T, heads, d_kv], of the encoder's output
    read_values: jax.Array  # [layers, B, T, heads, d_kv]
    read_mask: jax.Array  # bool[B, T], which of it is real
    valid: jax.Array  # bool[B, max_length]; False for slots not yet written
    length: jax.Array  # i32[], slots written


def relative_bucket(
    distance: jax.Array, bidirectional: bool, n_buckets: int, max_distance: int
) -> jax.Array:
    """The bucket of a distance between a key and a query.

    Half of the buckets hold one distance each, half grow logarithmically. In one
    direction only, later keys share bucket 0 with distance 0.

    Args:
      distance: i32[...], key position - query position.
      bidirectional: whether keys before and behind the query have buckets of their own.
      n_buckets: of both directions together.
      max_distance: from which on all distances share a bucket.

    Returns:
      i32[...].

    References:
      Raffel et al., 2019, arXiv 1910.10683, section 2.1.

    Example:
      >>> distance = jnp.array([1, 0, -1, -200])
      >>> relative_bucket(distance, False, n_buckets=32, max_distance=128).tolist()
      [0, 0, 1, 31]
    """
    if bidirectional:
        n_buckets //= 2
        bucket, distance = jnp.where(distance > 0, n_buckets, 0), jnp.abs(distance)
    else:
        bucket, distance = jnp.zeros_like(distance), jnp.maximum(-distance, 0)
    exact = n_buckets // 2
    positive = jnp.maximum(distance, 1).astype(jnp.float32)
    ratio = jnp.log(positive / exact) / math.log(max_distance / exact)
    growing = exact + (ratio * (n_buckets - exact)).astype(jnp.int32)
    far = jnp.minimum(growing, n_buckets - 1)
    return bucket + jnp.where(distance < exact, distance, far)


def _norm(config: T5Config, rngs: nnx.Rngs, dtype: Any) -> nnx.RMSNorm:
    """RMSNorm, which scales by the root of the mean square."""
    return nnx.RMSNorm(
        config.d_model, epsilon=config.layer_norm_epsilon, param_dtype=dtype, rngs=rngs
    )


class T5Attention(nnx.Module):
    """Attention with scores that are biased by distance and not scaled.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        d, inner = config.d_model, config.num_heads * config.d_kv
        self.kv_shape = (config.num_heads, config.d_kv)
        self.prefix = nnx.data(None)

        def linear(n_in, n_out):
            return nnx.Linear(n_in, n_out, use_bias=False, param_dtype=dtype, rngs=rngs)

        self.q = linear(d, inner)
        self.k = linear(d, inner)
        self.v = linear(d, inner)
        self.o = linear(inner, d)

    def project(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The keys and values [B, S, heads, d_kv] of what is attended to.

        Args:
          source: [B, S, d].
        """

        def split(x):
            return x.reshape(*x.shape[:-1], *self.kv_shape)

        keys, values = self.k(source), self.v(source)
        return split(keys), split(values)

    def __call__(
        self,
        hidden: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
    ) -> jax.Array:
        """Attends to these keys and values.

        Args:
          hidden: [B, T, d].
          keys: [B, S, heads, d_kv].
          values: [B, S, heads, d_kv].
          bias: [1, heads, T, S], added to the scores; None: nothing.
          mask: bool, broadcast to [B, heads, T, S]; True is seen. None: everything is.

        Returns:
          [B, T, d].
        """
        query = self.q(hidden).reshape(*hidden.shape[:-1], *self.kv_shape)
        n_text = keys.shape[1]
        keys, values, mask = with_prefix(self.prefix, keys, values, mask)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (keys.shape[1] - n_text, 0)))
        attended = dot_product(query, keys, values, bias=bias, mask=mask, scale=1.0)
        return self.o(attended.reshape(*hidden.shape[:-1], -1))


class T5LayerSelfAttention(nnx.Module):
    """Self-attention with its residual: x + SelfAttention(norm(x)).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

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
        """Attends to these tokens, or to those in the cache and these.

        Args:
          hidden: [B, T, d].
          bias: [1, heads, T, S].
          mask: bool, broadcast to [B, heads, T, S].
          past: None, or (keys, values, first free slot) of one layer.

        Returns:
          (hidden [B, T, d], (key, value) of these tokens).
        """
        normed = self.layer_norm(hidden)
        key, value = keys, values = self.SelfAttention.project(normed)
        if past is not None:
            *slots, start = past
            keys, values = written(slots, (key, value), start, axis=1)
        attended = self.SelfAttention(normed, keys, values, bias=bias, mask=mask)
        return hidden + attended, (key, value)


class T5LayerCrossAttention(nnx.Module):
    """Attention to the encoder's output: x + EncDecAttention(norm(x)).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

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
        """[B, U, d] from hidden [B, U, d], keys and values [B, T, heads, d_kv]."""
        normed = self.layer_norm(hidden)
        attended = self.EncDecAttention(normed, keys, values, bias=None, mask=mask)
        return hidden + attended


class T5DenseReluDense(nnx.Module):
    """The feed-forward network: wo(act(wi(x))).

    With a gate it is wo(act(wi_0(x)) * wi_1(x)).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        def linear(n_in, n_out):
            return nnx.Linear(n_in, n_out, use_bias=False, param_dtype=dtype, rngs=rngs)

        self.gated, self.act = config.gated, config.activation
        if config.gated:
            self.wi_0 = linear(config.d_model, config.d_ff)
            self.wi_1 = linear(config.d_model, config.d_ff)
        else:
            self.wi = linear(config.d_model, config.d_ff)
        self.wo = linear(config.d_ff, config.d_model)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, d] from hidden [B, T, d]."""
        activation = ACTIVATIONS[self.act]
        if not self.gated:
            wide = activation(self.wi(hidden))
        else:
            wide = activation(self.wi_0(hidden)) * self.wi_1(hidden)
        return self.wo(wide)


class T5LayerFF(nnx.Module):
    """The feed-forward network with its residual: x + DenseReluDense(norm(x)).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype: Any):
        self.DenseReluDense = T5DenseReluDense(config, rngs, dtype)
        self.layer_norm = _norm(config, rngs, dtype)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, d] from hidden [B, T, d]."""
        return hidden + self.DenseReluDense(self.layer_norm(hidden))


class T5Block(nnx.Module):
    """One layer of the encoder or the decoder.

    Self-attention, in the decoder attention to the encoder's output, feed-forward
    network.

    Args:
      config: sizes.
      decoder: whether it belongs to the decoder.
      rngs: draws the initial weights.
      dtype: of the weights.
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
        """The keys and values that a decoder layer looks up in the encoder's output.

        Args:
          encoded: [B, T, d].
        """
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
        """Runs a decoder layer on more tokens.

        Args:
          hidden: [B, U, d].
          bias: [1, heads, U, S].
          mask: bool, broadcast to [B, heads, U, S].
          read: (keys, values) of the encoder's output, of `read`.
          read_mask: bool, broadcast to [B, heads, U, T].
          past: None, or (keys, values, first free slot) of this layer.

        Returns:
          (hidden [B, U, d], (key, value)), with what the cache must remember of these
          tokens.
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
        """[B, T, d] from hidden [B, T, d]; a decoder layer where `encoded` is given."""
        if encoded is not None:
            read = self.read(encoded)
            hidden, _ = self.extend(hidden, bias, mask, read=read, read_mask=read_mask)
            return hidden
        hidden, _ = self.layer[0](hidden, bias, mask)
        return self.layer[1](hidden)


class T5Stack(nnx.Module):
    """All layers of the encoder or the decoder.

    With the table of their bias, and the last norm.

    Args:
      config: sizes.
      decoder: whether it belongs to the decoder.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

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
        """The bias [1, heads, T, S] of the attention scores, for keys at 0, ..., S - 1.

        Args:
          query_positions: i32[T].
          n_keys: S.
        """
        distance = (
            jnp.arange(n_keys, dtype=jnp.int32)[None, :] - query_positions[:, None]
        )
        buckets = relative_bucket(distance, *self.buckets)
        return self.relative_attention_bias(buckets).transpose(2, 0, 1)[None]
