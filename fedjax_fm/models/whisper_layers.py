"""The layers of Whisper: configuration, attention, encoder and decoder layers, stacks.

Pre-norm layers with biases everywhere but in the keys. Positions are added to what the
layers read: sinusoids in the encoder, which nothing trains, and a trained table in the
decoder.

References:
  Radford et al., 2022, Robust Speech Recognition via Large-Scale Weak Supervision, arXiv
  2212.04356, section 2.2.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.attention import dot_product
from fedjax_fm.models.bert import layer_norm
from fedjax_fm.models.modules import Fixed
from fedjax_fm.models.slots import written
from fedjax_fm.models.stacked import run_stacked, stack
from fedjax_fm.models.virtual_tokens import with_prefix

_EPSILON = 1e-5  # of every layer normalisation; no key of config.json says another
_TAPS = 3  # of either convolution
_LONGEST_WAVE = 10_000.0


@dataclass(frozen=True)
class WhisperConfig:
    """A Whisper's sizes: the fields of `config.json` that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      vocab_size: V, rows of the table of tokens.
      num_mel_bins: M, bins of a frame of sound; see `models.log_mel`.
      d_model: d, width of the hidden states.
      encoder_layers: layers of the encoder.
      encoder_attention_heads: its heads, a divisor of `d_model`.
      encoder_ffn_dim: width inside its feed-forward networks.
      decoder_layers: layers of the decoder.
      decoder_attention_heads: its heads, a divisor of `d_model`.
      decoder_ffn_dim: width inside its feed-forward networks.
      activation_function: an activation's name, see `activations.ACTIVATIONS`.
      max_source_positions: of the encoder; a position is two frames, 20 ms.
      max_target_positions: of the decoder, the longest text in tokens.
      classifier_proj_size: width that a classifier pools.
      use_weighted_layer_sum: must be False.
      tie_word_embeddings: must be True: the head is the table of tokens.
      pad_token_id: the padding's id, which stands for a missing target.
      decoder_start_token_id: the decoder's first token.

    Raises:
      ValueError: heads that do not divide the width, an unknown activation, a head of
        its own, or a sum of layers.

    Example:
      >>> WhisperConfig(max_source_positions=100).window  # two seconds
      200
    """

    vocab_size: int = 51865
    num_mel_bins: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    activation_function: str = "gelu"
    max_source_positions: int = 1500
    max_target_positions: int = 448
    classifier_proj_size: int = 256
    use_weighted_layer_sum: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int = 50256
    decoder_start_token_id: int = 50257

    def __post_init__(self):
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(
                    f"d_model={self.d_model} is not a multiple of "
                    f"{name}={getattr(self, name)}"
                )
        if self.d_model % 2:
            raise ValueError(
                f"expected an even d_model, half of it sines and half of it cosines of "
                f"a position, got d_model={self.d_model}"
            )
        if self.use_weighted_layer_sum:
            raise ValueError("use_weighted_layer_sum=True is not supported")
        if not self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings=False is not supported by Whisper")
        check_activation("activation_function", self.activation_function)

    @property
    def window(self) -> int:
        """Frames that the encoder reads at most."""
        return 2 * self.max_source_positions


class WhisperCache(NamedTuple):
    """The keys and values that the decoder looks up."""

    keys: jax.Array  # [layers, B, max_length, heads, d / heads], of decoder tokens
    values: jax.Array  # [layers, B, max_length, heads, d / heads]
    read_keys: jax.Array  # [layers, B, T, heads, d / heads], of the encoder's output
    read_values: jax.Array  # [layers, B, T, heads, d / heads]
    valid: jax.Array  # bool[B, max_length]; False for slots not yet written
    length: jax.Array  # i32[], slots written


def sinusoids(n_positions: int, width: int) -> np.ndarray:
    """Positions as sines and cosines of geometrically growing wave lengths.

        table[t, k] = sin(t 10000^(-k / (d / 2 - 1))),   k < d / 2; then the cosines

    Args:
      n_positions: rows.
      width: d, even.

    Returns:
      f32[n_positions, width].

    References:
      Radford et al., 2022, arXiv 2212.04356, section 2.2.

    Example:
      >>> sinusoids(2, 4).round(2).tolist()
      [[0.0, 0.0, 1.0, 1.0], [0.8399999737739563, 0.0, 0.5400000214576721, 1.0]]
    """
    half = width // 2
    steps = math.log(_LONGEST_WAVE) / max(half - 1, 1)
    angles = np.outer(np.arange(n_positions), np.exp(-steps * np.arange(half)))
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return table.astype(np.float32)


def windows(frames: jax.Array, stride: int) -> jax.Array:
    """Each frame with its two neighbours, as a convolution of three taps reads them.

    A product with the flattened kernel of torch's convolution, padded by one zero on
    either side, is that convolution.

    Args:
      frames: [B, T, C].
      stride: frames from one window to the next.

    Returns:
      [B, ceil(T / stride), 3 C], a channel's three taps side by side.

    Example:
      >>> windows(jnp.array([[[1], [2], [3]]]), stride=2).tolist()
      [[[0, 1, 2], [2, 3, 0]]]
    """
    length = frames.shape[1]
    padded = jnp.pad(frames, ((0, 0), (1, 1), (0, 0)))
    taps = [padded[:, tap : tap + length : stride] for tap in range(_TAPS)]
    stacked = jnp.stack(taps, axis=-1)
    return stacked.reshape(*stacked.shape[:2], -1)


class WhisperAttention(nnx.Module):
    """Multi-head attention with its output projection; the keys have no bias.

    Args:
      width: d of the hidden states.
      heads: a divisor of d.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, dtype: Any):
        self.kv_shape = (heads, width // heads)
        self.prefix = nnx.data(None)

        def linear(bias: bool) -> nnx.Linear:
            return nnx.Linear(width, width, use_bias=bias, param_dtype=dtype, rngs=rngs)

        self.k_proj = linear(bias=False)
        self.v_proj, self.q_proj, self.out_proj = (linear(True) for _ in range(3))

    def project(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The keys and values [B, S, heads, d / heads] of what is attended to.

        Args:
          source: [B, S, d].
        """

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], *self.kv_shape)

        keys, values = self.k_proj(source), self.v_proj(source)
        return split(keys), split(values)

    def __call__(
        self,
        hidden: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Attends to these keys and values.

        Args:
          hidden: [B, T, d].
          keys: [B, S, heads, d / heads].
          values: [B, S, heads, d / heads].
          mask: bool, broadcast to [B, heads, T, S]; True is seen. None: everything is.

        Returns:
          [B, T, d].
        """
        query = self.q_proj(hidden).reshape(*hidden.shape[:-1], *self.kv_shape)
        keys, values, mask = with_prefix(self.prefix, keys, values, mask)
        attended = dot_product(query, keys, values, mask=mask)
        return self.out_proj(attended.reshape(hidden.shape))


class WhisperLayer(nnx.Module):
    """Self-attention and a feed-forward network, each behind a norm and with a residual.

    Args:
      width: d of the hidden states.
      heads: of the attention.
      wide: width inside the feed-forward network.
      act: name of its activation.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        wide: int,
        act: str,
        rngs: nnx.Rngs,
        dtype: Any,
    ):
        self.act = act
        self.self_attn = WhisperAttention(width, heads, rngs, dtype)
        self.self_attn_layer_norm = layer_norm(width, _EPSILON, dtype, rngs)
        self.fc1 = nnx.Linear(width, wide, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(wide, width, param_dtype=dtype, rngs=rngs)
        self.final_layer_norm = layer_norm(width, _EPSILON, dtype, rngs)

    def feed_forward(self, hidden: jax.Array) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], which is added."""
        wide = self.fc1(self.final_layer_norm(hidden))
        return hidden + self.fc2(ACTIVATIONS[self.act](wide))


class WhisperEncoderLayer(WhisperLayer):
    """One layer of the encoder.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs, dtype: Any):
        super().__init__(
            width=config.d_model,
            heads=config.encoder_attention_heads,
            wide=config.encoder_ffn_dim,
            act=config.activation_function,
            rngs=rngs,
            dtype=dtype,
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, d] from hidden [B, T, d]."""
        normed = self.self_attn_layer_norm(hidden)
        keys, values = self.self_attn.project(normed)
        hidden = hidden + self.self_attn(normed, keys, values)
        return self.feed_forward(hidden)


class WhisperDecoderLayer(WhisperLayer):
    """One layer of the decoder: it attends to its own tokens, then to the sound.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs, dtype: Any):
        d, heads = config.d_model, config.decoder_attention_heads
        super().__init__(
            width=d,
            heads=heads,
            wide=config.decoder_ffn_dim,
            act=config.activation_function,
            rngs=rngs,
            dtype=dtype,
        )
        self.encoder_attn = WhisperAttention(d, heads, rngs, dtype)
        self.encoder_attn_layer_norm = layer_norm(d, _EPSILON, dtype, rngs)

    def read(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The keys and values that the layer looks up in the encoder's output.

        Args:
          encoded: [B, T, d].
        """
        return self.encoder_attn.project(encoded)

    def extend(
        self,
        hidden: jax.Array,
        mask: jax.Array,
        read: tuple[jax.Array, jax.Array],
        past: tuple | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Runs the layer on more tokens.

        Args:
          hidden: [B, U, d].
          mask: bool, broadcast to [B, heads, U, S].
          read: (keys, values) of the encoder's output, of `read`.
          past: None, or (keys, values, first free slot) of this layer.

        Returns:
          (hidden [B, U, d], (keys, values) of these tokens).
        """
        normed = self.self_attn_layer_norm(hidden)
        new = self.self_attn.project(normed)
        keys, values = new
        if past is not None:
            *slots, start = past
            keys, values = written(slots, new, start, axis=1)
        hidden = hidden + self.self_attn(normed, keys, values, mask)
        normed = self.encoder_attn_layer_norm(hidden)
        hidden = hidden + self.encoder_attn(normed, *read)
        return self.feed_forward(hidden), new

    def __call__(
        self, hidden: jax.Array, mask: jax.Array, encoded: jax.Array
    ) -> jax.Array:
        """[B, U, d] from hidden [B, U, d] and the encoder's output [B, T, d]."""
        return self.extend(hidden, mask, self.read(encoded))[0]


class Sinusoids(nnx.Module):
    """The encoder's positions, which are read from files and never trained.

    Args:
      config: sizes.
      dtype: of the table.
    """

    def __init__(self, config: WhisperConfig, dtype: Any):
        table = sinusoids(config.max_source_positions, config.d_model)
        self.embedding = Fixed(jnp.asarray(table, dtype))

    def __call__(self, length: int) -> jax.Array:
        """The first positions, [length, d]."""
        return self.embedding[...][:length]


class WhisperEncoder(nnx.Module):
    """Two convolutions over frames, positions, and all layers of the encoder.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
    """

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        d = config.d_model
        self.config = config
        self.conv1 = nnx.Linear(
            _TAPS * config.num_mel_bins, d, param_dtype=dtype, rngs=rngs
        )
        self.conv2 = nnx.Linear(_TAPS * d, d, param_dtype=dtype, rngs=rngs)
        self.embed_positions = Sinusoids(config, dtype)
        self.layers = stack(
            lambda r: WhisperEncoderLayer(config, r, dtype), config.encoder_layers, rngs
        )
        self.layer_norm = layer_norm(d, _EPSILON, dtype, rngs)

    def __call__(self, input_features: jax.Array) -> jax.Array:
        """The hidden states of sound, normalised.

        A window that is shorter than the model's has its first positions. Whisper was
        trained on whole windows of 30 seconds, and transformers refuses any other.

        Args:
          input_features: [B, M, frames], of `models.log_mel`.

        Returns:
          [B, T, d], one state for two frames.

        Raises:
          ValueError: another number of bins, or more frames than there are positions.
        """
        config, shape = self.config, input_features.shape
        fits = len(shape) == 3 and shape[1] == config.num_mel_bins
        if not fits or not 0 < shape[2] <= config.window:
            raise ValueError(
                f"expected input_features of shape [B, {config.num_mel_bins}, frames], "
                f"at most {config.window} frames (max_source_positions), got "
                f"{list(shape)}"
            )
        dtype = self.embed_positions.embedding.dtype
        frames = jnp.swapaxes(input_features, 1, 2).astype(dtype)
        gelu = ACTIVATIONS["gelu"]  # whatever the layers' activation is
        hidden = gelu(self.conv1(windows(frames, 1)))
        hidden = gelu(self.conv2(windows(hidden, 2)))
        hidden = hidden + self.embed_positions(hidden.shape[1])
        return self.layer_norm(run_stacked(self.layers, hidden))


class WhisperDecoder(nnx.Module):
    """The tables of tokens and positions, and all layers of the decoder.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
    """

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        d = config.d_model
        self.config = config
        self.embed_tokens = nnx.Embed(
            config.vocab_size, d, param_dtype=dtype, rngs=rngs
        )
        self.embed_positions = nnx.Embed(
            config.max_target_positions, d, param_dtype=dtype, rngs=rngs
        )
        self.layers = stack(
            lambda r: WhisperDecoderLayer(config, r, dtype), config.decoder_layers, rngs
        )
        self.layer_norm = layer_norm(d, _EPSILON, dtype, rngs)

    def embed(self, input_ids: jax.Array, start: jax.Array | int = 0) -> jax.Array:
        """Tokens and their positions, [B, U, d].

        Args:
          input_ids: i32[B, U].
          start: i32[], the position of the first one.

        Raises:
          ValueError: more tokens than there are positions.
        """
        length, most = input_ids.shape[1], self.config.max_target_positions
        if length > most:
            raise ValueError(
                f"{length} tokens exceed the decoder's {most} positions "
                "(max_target_positions); truncate"
            )
        positions = start + jnp.arange(length, dtype=jnp.int32)
        return self.embed_tokens(input_ids) + self.embed_positions(positions)[None]

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        encoded: jax.Array,
    ) -> jax.Array:
        """The hidden states [B, U, d] of tokens, normalised.

        Args:
          input_ids: i32[B, U].
          attention_mask: [B, U], 1 for real tokens; None: all are.
          encoded: [B, T, d], the encoder's output.
        """
        length = input_ids.shape[1]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        if attention_mask is not None:
            mask = mask & attention_mask.astype(bool)[:, None, None, :]
        hidden = run_stacked(self.layers, self.embed(input_ids), mask, encoded)
        return self.layer_norm(hidden)
