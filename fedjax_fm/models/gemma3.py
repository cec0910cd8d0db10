"""Gemma 3, text only: a decoder with norms around every block.

It is a Llama (see `llama`, whose parts it is made of) with these differences: RMSNorm
scales by 1 + w; queries and keys are normalised before they are rotated; both blocks
have a norm before and one behind them; the feed-forward network is gated by GELU;
embedded tokens are scaled by the root of the width; of six layers five see the last
tokens only and have a rotary base of their own. Towers for images are not here.

References:
  Gemma Team, 2025, Gemma 3 Technical Report, arXiv 2503.19786, section 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import check_activation
from fedjax_fm.models.llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaMLP,
    LlamaModel,
    MakeLinear,
)
from fedjax_fm.models.rotary import RotaryScaling, rotary_tables
from fedjax_fm.models.windows import (
    AttentionMask,
    checked_windows,
    window_in_use,
    windowed_layers,
)


@dataclass(frozen=True)
class Gemma3Config:
    """A Gemma 3's sizes: the fields of `config.json` that change the computation.

    Names and defaults are those of Hugging Face's `Gemma3TextConfig`.

    Attributes:
      vocab_size: V, rows of the table of tokens.
      hidden_size: d, width of the hidden states.
      intermediate_size: width inside the feed-forward network.
      num_hidden_layers: decoder layers.
      num_attention_heads: query heads.
      num_key_value_heads: heads of keys and values, a divisor of the query heads.
      head_dim: width of a head, even.
      hidden_activation: an activation's name, see `activations.ACTIVATIONS`.
      max_position_embeddings: the context, the longest text in tokens.
      rms_norm_eps: what RMSNorm adds to the mean square.
      rope_theta: base of the rotary frequencies of layers that see all.
      rope_scaling: how these are stretched; None: not at all.
      rope_local_base_freq: base of the rotary frequencies of layers with a window.
      rope_local_scaling: how those are stretched; None: not at all.
      attention_bias: whether q, k, v and o have biases.
      query_pre_attn_scalar: scores are divided by its root.
      final_logit_softcapping: c of logits c tanh(x / c); None: as they are.
      tie_word_embeddings: whether the head is the table of tokens.
      sliding_window: tokens that a token sees in layers with a window, itself among
        them.
      layer_types: "sliding_attention" or "full_attention" for each layer; None: every
        sixth layer sees all.

    Raises:
      TypeError, ValueError: sizes that do not fit each other, an unknown activation,
        windows that do not fit the layers.

    Example:
      >>> Gemma3Config(num_hidden_layers=6).layer_types[-2:]
      ('sliding_attention', 'full_attention')
    """

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_scaling: RotaryScaling | None = None
    rope_local_base_freq: float = 1e4
    rope_local_scaling: RotaryScaling | None = None
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] = None  # type: ignore[assignment]

    # What `llama` reads of its own configuration and is the same in every Gemma 3.
    qk_norm: ClassVar[bool] = True
    mlp_bias: ClassVar[bool] = False

    def __post_init__(self):
        if self.layer_types is None:
            kinds = alternating(self.num_hidden_layers)
            object.__setattr__(self, "layer_types", kinds)
        checked_windows(self.sliding_window, self.layer_types, self.num_hidden_layers)
        check_activation("hidden_activation", self.hidden_activation)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of "
                f"num_key_value_heads={kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"rotary embedding needs an even head_dim, got {self.head_dim}"
            )

    @property
    def attention_output_bias(self) -> bool:
        """Whether o has a bias: where q, k and v have one."""
        return self.attention_bias

    @property
    def windowed(self) -> tuple[bool, ...] | None:
        """Whether each layer has a window; None where all layers are alike."""
        return windowed_layers(self.layer_types)

    @property
    def window(self) -> int | None:
        """The value of `sliding_window`, None where no layer has it."""
        return window_in_use(self.sliding_window, self.layer_types)


def alternating(n_layers: int, period: int = 6) -> tuple[str, ...]:
    """The kinds of layers of which every `period`-th sees all.

    Args:
      n_layers: of the model.
      period: at least 1.

    Returns:
      One kind a layer.

    Raises:
      ValueError: another period.

    Example:
      >>> alternating(3, period=2)
      ('sliding_attention', 'full_attention', 'sliding_attention')
    """
    if period < 1:
        raise ValueError(f"expected sliding_window_pattern >= 1, got {period}")
    return tuple(
        "sliding_attention" if (i + 1) % period else "full_attention"
        for i in range(n_layers)
    )


class RotaryTables(NamedTuple):
    """Cosines and sines of a stack of layers, each (cos, sin) f32[B, T, head_dim / 2].

    Attributes:
      plain: of layers that see all, or of all layers where they are alike.
      sliding: of layers with a window, where there are both kinds; else None.
    """

    plain: tuple[jax.Array, jax.Array]
    sliding: tuple[jax.Array, jax.Array] | None

    def of_layer(self, windowed: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The tables of one layer.

        Args:
          windowed: bool[], whether it has a window; None where all layers are alike.
        """
        if self.sliding is None or windowed is None:
            return self.plain
        (cos, sin), (near_cos, near_sin) = self.plain, self.sliding
        chosen = jnp.where(windowed, near_cos, cos), jnp.where(windowed, near_sin, sin)
        return chosen


class Gemma3RMSNorm(nnx.Module):
    """RMSNorm with a scale around one: x / sqrt(mean(x^2) + epsilon) * (1 + w), in f32.

    Args:
      width: of what is normalised, the last axis.
      epsilon: added to the mean square.
      dtype: of w, which starts as zeros.
      rngs: needed by nnx; nothing is drawn.

    References:
      Zhang and Sennrich, 2019, arXiv 1910.07467.
    """

    def __init__(self, width: int, epsilon: float, dtype: Any, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.zeros(width, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] from x [..., width], in x's dtype."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normal = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normal * (1 + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class Gemma3Attention(LlamaAttention):
    """Llama's attention with normalised queries and keys, and a scale of its own.

    Args:
      config: sizes.
      dtype: of the weights.
      linear: makes the matrices, see `MakeLinear`.
      rngs: draws the initial weights.

    References:
      Gemma Team, 2025, arXiv 2503.19786, section 2.
    """

    make_norm: ClassVar[Callable[..., Any]] = Gemma3RMSNorm

    def __init__(self, config: Any, dtype: Any, linear: MakeLinear, rngs: nnx.Rngs):
        super().__init__(config, dtype, linear, rngs)
        self.scale = config.query_pre_attn_scalar**-0.5


class Gemma3DecoderLayer(LlamaDecoderLayer):
    """One decoder layer: a norm before and one behind each of its two blocks.

    Args:
      config: sizes.
      dtype: of the weights.
      linear: makes the matrices, see `MakeLinear`.
      rngs: draws the initial weights.
    """

    def __init__(self, config: Any, dtype: Any, linear: MakeLinear, rngs: nnx.Rngs):
        self.self_attn = Gemma3Attention(config, dtype, linear, rngs)
        self.mlp = LlamaMLP(config, linear, rngs, act=config.hidden_activation)

        def norm() -> Gemma3RMSNorm:
            return Gemma3RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, rngs)

        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.post_feedforward_layernorm = norm()

    def extend(
        self,
        hidden: jax.Array,
        tables: RotaryTables,
        mask: AttentionMask,
        past: tuple | None,
        windowed: Any,
    ):
        """Runs the layer on more tokens.

        Args:
          hidden: [B, T, d].
          tables: of layers with a window and without, for these tokens.
          mask: likewise.
          past: as of `LlamaAttention`.
          windowed: bool[], whether this layer is one of those with a window; None where
            all layers are alike.

        Returns:
          (hidden [B, T, d], (key, value)), with what the cache must remember of these
          tokens.
        """
        seen, own = mask.of_layer(windowed), tables.of_layer(windowed)
        normal = self.input_layernorm(hidden)
        attended, remembered = self.self_attn(normal, own, seen, past)
        hidden = hidden + self.post_attention_layernorm(attended)
        inner = self.mlp(self.pre_feedforward_layernorm(hidden))
        return hidden + self.post_feedforward_layernorm(inner), remembered


class Gemma3Model(LlamaModel):
    """The decoder without its head: tokens in, hidden states out.

    Args:
      config: a `Gemma3Config`.
      rngs: draws the initial weights.
      dtype: of weights and activations.
      linear: `(n_in, n_out, bias, rngs) -> module` makes the layers' matrices; None:
        `dense_linear(dtype)`.

    References:
      Gemma Team, 2025, arXiv 2503.19786, section 2.
    """

    make_layer: ClassVar[Callable[..., Any]] = Gemma3DecoderLayer
    make_norm: ClassVar[Callable[..., Any]] = Gemma3RMSNorm

    def __init__(
        self,
        config: Any,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        linear: MakeLinear | None = None,
    ):
        super().__init__(config, rngs, dtype, linear)

    def embed(self, input_ids: jax.Array) -> jax.Array:
        """The embedded tokens [B, T, d], scaled by the root of d.

        Args:
          input_ids: i32[B, T].
        """
        embedded = self.embed_tokens(input_ids)
        # Rounded to the weights' dtype, as when the model was trained.
        return embedded * jnp.asarray(self.config.hidden_size**0.5, embedded.dtype)

    def _tables(self, positions: jax.Array) -> RotaryTables:
        """The cosines and sines of these positions, for either kind of layer."""
        config: Any = self.config
        full = (config.rope_theta, config.rope_scaling)
        near = (config.rope_local_base_freq, config.rope_local_scaling)
        if config.windowed is None:
            only = full if config.window is None else near
            plain = rotary_tables(positions, config.head_dim, *only)
            return RotaryTables(plain=plain, sliding=None)
        return RotaryTables(
            plain=rotary_tables(positions, config.head_dim, *full),
            sliding=rotary_tables(positions, config.head_dim, *near),
        )


class Gemma3ForCausalLM(LlamaForCausalLM):
    """A Gemma 3 language model: tokens in, logits out.

    It is used as a `LlamaForCausalLM` is: padding may lie on either side, norms'
    statistics, rotary angles, softmax and logits are always f32.

    Args:
      config: a `Gemma3Config`.
      rngs: draws the initial weights.
      dtype: of weights and activations.
      linear: `(n_in, n_out, bias, rngs) -> module` makes the layers' matrices; None:
        `dense_linear(dtype)`.

    References:
      Gemma Team, 2025, arXiv 2503.19786.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.Gemma3Config(
      ...     vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
      ...     num_attention_heads=2, num_key_value_heads=1, head_dim=4,
      ... )
      >>> def run(inputs):
      ...     return models.Gemma3ForCausalLM(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 30)
    """

    make_decoder: ClassVar[Callable[..., LlamaModel]] = Gemma3Model

    def __init__(
        self,
        config: Any,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        linear: MakeLinear | None = None,
    ):
        super().__init__(config, rngs, dtype, linear)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states.

        Args:
          hidden: [..., d].
        """
        config: Any = self.config
        logits, cap = super().head(hidden), config.final_logit_softcapping
        return logits if cap is None else cap * jnp.tanh(logits / cap)


class Gemma3ForSequenceClassification(LlamaForSequenceClassification):
    """A Gemma 3 with a linear classifier: logits f32[B, num_labels].

    The classifier reads the hidden state of each row's last real token.

    Args:
      config: a `Gemma3Config`.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of the decoder's weights and activations; the classifier stays f32.
    """

    make_decoder: ClassVar[Callable[..., LlamaModel]] = Gemma3Model

    def __init__(
        self, config: Any, num_labels: int, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        super().__init__(config, num_labels, rngs, dtype)
