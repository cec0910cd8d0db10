"""Llama-family decoders (Llama 1 to 3, TinyLlama, SmolLM2, Mistral, Qwen2, Qwen3).

Layers are stacked on a leading axis and run by `lax.scan`. Module names follow Hugging
Face's `LlamaForCausalLM` without the layer number, so that weights map by name and LoRA
targets read as they do in PEFT (`q_proj`, `v_proj`).

References:
  Touvron et al., 2023, arXiv 2302.13971; grouped-query attention: Ainslie et al., 2023,
  arXiv 2305.13245; RMSNorm: Zhang and Sennrich, 2019, arXiv 1910.07467; SmolLM2: Ben
  Allal et al., 2025, arXiv 2502.02737.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS
from fedjax_fm.models.attention import dot_product, goes_by_texts
from fedjax_fm.models.classifier import classifier, last_real
from fedjax_fm.models.generate import KVCache
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.rotary import (
    RotaryScaling,
    count_positions,
    rotary_tables,
    rotate,
)
from fedjax_fm.models.slots import real_tokens, seen_by, written
from fedjax_fm.models.splash import Texts
from fedjax_fm.models.stacked import run_stacked, scan_layers, stack
from fedjax_fm.models.virtual_tokens import behind, prepend, seen_by_all, with_prefix
from fedjax_fm.models.weights import Naming
from fedjax_fm.models.windows import (
    AttentionMask,
    checked_windows,
    masks_of,
    window_in_use,
    windowed_layers,
)


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama's sizes: the fields of `config.json` that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      vocab_size: V, rows of the table of tokens.
      hidden_size: d, width of the hidden states.
      intermediate_size: width inside the feed-forward network.
      num_hidden_layers: decoder layers.
      num_attention_heads: query heads.
      num_key_value_heads: heads of keys and values, a divisor of the query heads; None:
        as many as query heads.
      head_dim: width of a head, even; None: hidden_size / num_attention_heads.
      hidden_act: must be "silu".
      max_position_embeddings: the context, the longest text in tokens.
      rms_norm_eps: what RMSNorm adds to the mean square.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are stretched, a `Llama3Scaling` or `FrequencyFactors`;
        None: not at all.
      attention_bias: whether q, k and v have biases.
      attention_output_bias: whether o has one; None: as `attention_bias` (Qwen2: only
        q, k and v have one).
      qk_norm: whether queries and keys are normalised before they are rotated (Qwen3).
      mlp_bias: whether the feed-forward network has biases.
      tie_word_embeddings: whether the head is the table of tokens.
      sliding_window: tokens that a token sees, itself among them; None: all before it.
      layer_types: "sliding_attention" or "full_attention" for each layer; None: every
        layer alike.

    Raises:
      TypeError, ValueError: sizes that do not fit each other, another activation,
        windows that do not fit the layers.

    Example:
      >>> LlamaConfig(hidden_size=64, num_attention_heads=4).head_dim
      16
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = None  # type: ignore[assignment]
    head_dim: int = None  # type: ignore[assignment]
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RotaryScaling | None = None
    attention_bias: bool = False
    attention_output_bias: bool = None  # type: ignore[assignment]
    qk_norm: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None

    def __post_init__(self):
        checked_windows(self.sliding_window, self.layer_types, self.num_hidden_layers)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        width = self.hidden_size
        if kv_heads is None:
            object.__setattr__(self, "num_key_value_heads", heads)
        elif heads % kv_heads:
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of "
                f"num_key_value_heads={kv_heads}"
            )
        if self.head_dim is None:
            if width % heads:
                raise ValueError(
                    f"hidden_size={width} is not a multiple of "
                    f"num_attention_heads={heads}"
                )
            object.__setattr__(self, "head_dim", width // heads)
        if self.attention_output_bias is None:
            object.__setattr__(self, "attention_output_bias", self.attention_bias)
        if self.head_dim % 2:
            raise ValueError(
                f"rotary embedding needs an even head_dim, got {self.head_dim}"
            )
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act must be 'silu', got {self.hidden_act!r}")

    @property
    def windowed(self) -> tuple[bool, ...] | None:
        """Whether each layer sees the last `sliding_window` tokens only.

        None where all layers are alike.
        """
        return windowed_layers(self.layer_types)

    @property
    def window(self) -> int | None:
        """The value of `sliding_window`, None where no layer has it."""
        return window_in_use(self.sliding_window, self.layer_types)


# (in, out, bias, rngs) -> a linear module.
MakeLinear = Callable[[int, int, bool, nnx.Rngs], nnx.Module]


def dense_linear(dtype: Any) -> MakeLinear:
    """Makes `nnx.Linear` with weights drawn from normal(0.02).

    Args:
      dtype: of the weights.

    Returns:
      `(n_in, n_out, bias, rngs) -> nnx.Linear`.
    """

    def make(n_in: int, n_out: int, bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
        init = nnx.initializers.normal(0.02)
        return nnx.Linear(
            n_in, n_out, use_bias=bias, kernel_init=init, param_dtype=dtype, rngs=rngs
        )

    return make


def rms_norm(width: int, epsilon: float, dtype: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMSNorm, which scales by the root of the mean square.

    Args:
      width: of what is normalised, the last axis.
      epsilon: added to the mean square.
      dtype: of the scale.
      rngs: needed by nnx; nothing is drawn.

    Returns:
      The module, with scale one.
    """
    return nnx.RMSNorm(width, epsilon=epsilon, param_dtype=dtype, rngs=rngs)


class LlamaAttention(nnx.Module):
    """Causal attention with grouped queries.

    num_attention_heads / num_key_value_heads query heads share a key and a value.

    Args:
      config: sizes.
      dtype: of the weights.
      linear: makes the matrices, see `MakeLinear`.
      rngs: draws the initial weights.

    References:
      Ainslie et al., 2023, arXiv 2305.13245.
    """

    make_norm: ClassVar[Callable[..., Any]] = staticmethod(rms_norm)

    def __init__(
        self, config: LlamaConfig, dtype: Any, linear: MakeLinear, rngs: nnx.Rngs
    ):
        d, bias, width = config.hidden_size, config.attention_bias, config.head_dim
        self.head_dim = width
        self.kv_shape = (config.num_key_value_heads, width)
        self.scale = None  # of the scores: one over the root of the width
        self.prefix = nnx.data(None)
        self.q_proj = linear(d, config.num_attention_heads * width, bias, rngs)
        self.k_proj = linear(d, config.num_key_value_heads * width, bias, rngs)
        self.v_proj = linear(d, config.num_key_value_heads * width, bias, rngs)
        self.o_proj = linear(
            config.num_attention_heads * width, d, config.attention_output_bias, rngs
        )
        if config.qk_norm:
            self.q_norm = self.make_norm(width, config.rms_norm_eps, dtype, rngs)
            self.k_norm = self.make_norm(width, config.rms_norm_eps, dtype, rngs)
        self.qk_norm = config.qk_norm

    def __call__(
        self,
        hidden: jax.Array,
        tables: tuple,
        mask: jax.Array,
        past: tuple | None = None,
    ):
        """Attends to these tokens, or to those in the cache and these.

        Args:
          hidden: [B, T, d].
          tables: of `rotary_tables` for these tokens.
          mask: bool, broadcast to [B, heads, T, T], with a cache to [B, heads, T, S].
          past: None, or (keys, values [B, S, kv_heads, head_dim], first free slot
            i32[]) of one layer; the tokens are then written to a copy.

        Returns:
          (attended [B, T, d], (key, value) [B, T, kv_heads, head_dim] of these tokens).
        """

        def split(x):  # to [B, T, heads, head_dim]
            return x.reshape(*x.shape[:-1], -1, self.head_dim)

        query, key, value = (
            split(project(hidden))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, tables), rotate(key, tables)
        keys, values = key, value
        if past is not None:
            *slots, start = past
            keys, values = written(slots, (key, value), start, axis=1)
        keys, values, with_prefixes = with_prefix(self.prefix, keys, values, mask)
        attended = dot_product(
            query, keys, values, mask=with_prefixes, scale=self.scale
        )
        return self.o_proj(attended.reshape(*hidden.shape[:-1], -1)), (key, value)


class LlamaMLP(nnx.Module):
    """The gated feed-forward network: down(act(gate(x)) * up(x)).

    Args:
      config: sizes.
      linear: makes the matrices, see `MakeLinear`.
      rngs: draws the initial weights.
      act: an activation's name, see `activations.ACTIVATIONS`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        linear: MakeLinear,
        rngs: nnx.Rngs,
        act: str = "silu",
    ):
        d, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = linear(d, width, bias, rngs)
        self.up_proj = linear(d, width, bias, rngs)
        self.down_proj = linear(width, d, bias, rngs)
        self.act = act

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, d] from hidden [B, T, d]."""
        gate = ACTIVATIONS[self.act](self.gate_proj(hidden))
        return self.down_proj(gate * self.up_proj(hidden))


class LlamaDecoderLayer(nnx.Module):
    """One decoder layer, pre-norm.

    Args:
      config: sizes.
      dtype: of the weights.
      linear: makes the matrices, see `MakeLinear`.
      rngs: draws the initial weights.
    """

    def __init__(
        self, config: LlamaConfig, dtype: Any, linear: MakeLinear, rngs: nnx.Rngs
    ):
        self.self_attn = LlamaAttention(config, dtype, linear, rngs)
        self.mlp = LlamaMLP(config, linear, rngs)
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = rms_norm(width, epsilon, dtype, rngs)
        self.post_attention_layernorm = rms_norm(width, epsilon, dtype, rngs)

    def extend(
        self,
        hidden: jax.Array,
        tables: tuple,
        mask: AttentionMask,
        past: tuple | None,
        windowed: Any,
    ):
        """Runs the layer on more tokens.

        Args:
          hidden: [B, T, d].
          tables: of `rotary_tables` for these tokens.
          mask: of layers with a window and without.
          past: as of `LlamaAttention`.
          windowed: bool[], whether this layer is one of those with a window; None where
            all layers are alike.

        Returns:
          (hidden [B, T, d], (key, value)), with what the cache must remember of these
          tokens.
        """
        seen = mask.of_layer(windowed)
        attended, remembered = self.self_attn(
            self.input_layernorm(hidden), tables, seen, past
        )
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), remembered

    def __call__(
        self,
        hidden: jax.Array,
        tables: tuple,
        mask: AttentionMask,
        windowed: Any = None,
    ) -> jax.Array:
        """[B, T, d] from hidden [B, T, d]; arguments as those of `extend`."""
        hidden, _ = self.extend(hidden, tables, mask, past=None, windowed=windowed)
        return hidden


class LlamaModel(nnx.Module):
    """The decoder without its head: tokens in, hidden states out.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
      linear: `(n_in, n_out, bias, rngs) -> module` makes the layers' matrices; None:
        `dense_linear(dtype)`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
      ...     num_attention_heads=2,
      ... )
      >>> def run(inputs):
      ...     return models.LlamaModel(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 8)
    """

    make_layer: ClassVar[Callable[..., Any]] = LlamaDecoderLayer
    make_norm: ClassVar[Callable[..., Any]] = staticmethod(rms_norm)

    def __init__(
        self,
        config: LlamaConfig,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        linear: MakeLinear | None = None,
    ):
        linear, width = linear or dense_linear(dtype), config.hidden_size
        self.config = config
        self.embed_tokens = nnx.Embed(
            config.vocab_size, width, param_dtype=dtype, rngs=rngs
        )
        self.layers = stack(
            lambda r: self.make_layer(config, dtype, linear, r),
            config.num_hidden_layers,
            rngs,
        )
        self.norm = self.make_norm(width, config.rms_norm_eps, dtype, rngs)
        self.prompt = nnx.data(None)
        self.first_position = 0

    @property
    def vocabulary(self) -> nnx.Embed:
        """The embedding of tokens, of which a trained prompt is made."""
        return self.embed_tokens

    def embed(self, input_ids: jax.Array) -> jax.Array:
        """The embedded tokens [B, T, d], as the first layer reads them.

        Args:
          input_ids: i32[B, T].
        """
        return self.embed_tokens(input_ids)

    def _windowed(self) -> jax.Array | None:
        """Which layers have a window, bool[layers]; None where all are alike."""
        windowed = self.config.windowed
        return None if windowed is None else jnp.asarray(windowed)

    def _tables(self, positions: jax.Array) -> tuple:
        """What every layer is given of these positions: their cosines and sines."""
        return rotary_tables(
            positions,
            self.config.head_dim,
            self.config.rope_theta,
            self.config.rope_scaling,
        )

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states [B, T, d] of tokens, normalised.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens and 0 for padding; rows that hold
            several texts (see `pack`) number them 1, 2, ..., and a token sees only
            those of its own.
            None: all are real.
          positions: i32[B, T]; None: counted over real tokens.

        Raises:
          ValueError: more tokens than the model's context.
        """
        segments = (
            jnp.ones(input_ids.shape, jnp.int32)
            if attention_mask is None
            else attention_mask.astype(jnp.int32)
        )
        positions = count_positions(segments) if positions is None else positions
        hidden, n_prompt = prepend(self.prompt, self.embed(input_ids))
        length = hidden.shape[1] + self.first_position
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"{length} tokens exceed the model's context of {limit}; shorten or "
                "split the text"
            )
        mask = self._mask(segments, n_prompt)
        tables = self._tables(self.first_position + behind(positions, n_prompt))
        hidden = run_stacked(self.layers, hidden, tables, mask, each=self._windowed())
        return self.norm(hidden[:, n_prompt:])

    def _mask(self, segments: jax.Array, n_prompt: int) -> AttentionMask:
        """Which tokens see which: those before them, of the same text.

        Args:
          segments: i32[B, T], the number of each token's text.
          n_prompt: trained tokens before them.
        """
        has_more = self.config.window is not None or self.first_position or n_prompt
        if goes_by_texts() and not has_more:
            return AttentionMask(plain=Texts(segments), sliding=None)
        # bool[B, 1, T, T]
        same_text = segments[:, None, :, None] == segments[:, None, None, :]
        causal = jnp.tril(seen_by_all(same_text, n_prompt, queries=True))
        numbers = behind(count_positions(segments), n_prompt)
        return masks_of(
            causal,
            queries=numbers,
            keys=numbers,
            window=self.config.window,
            windowed=self.config.windowed,
            n_before=self.first_position,
        )

    def extend(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        positions: jax.Array | None,
        cache: KVCache,
    ) -> tuple[jax.Array, KVCache]:
        """Reads more tokens behind those in the cache.

        Args:
          input_ids: i32[B, T], the new tokens.
          attention_mask: [B, T] of these tokens, 1 for real ones; None: all are.
          positions: i32[B, T]; None: counted over real tokens, those in the cache
            included.
          cache: as of `LlamaForCausalLM.empty_cache`.

        Returns:
          (hidden [B, T, d], cache).

        Raises:
          ValueError: more tokens than the cache has slots.
        """
        length, room = input_ids.shape[-1], cache.valid.shape[-1]
        if length > room:
            raise ValueError(f"{length} tokens do not fit into a cache of {room}")
        real = real_tokens(input_ids, attention_mask)
        if positions is None:
            earlier = cache.valid.sum(-1, dtype=jnp.int32)
            positions = earlier[:, None] + count_positions(real)
        elif self.prompt is not None:
            positions = positions + self.prompt().shape[0]  # which lies in the cache
        return self._extend(self.embed(input_ids), real, positions, cache)

    def _extend(
        self, hidden: jax.Array, real: jax.Array, positions: jax.Array, cache: KVCache
    ):
        """Extends the cache by embedded tokens [B, T, d]; all arguments are needed."""
        length = hidden.shape[1]
        valid, seen = seen_by(cache.valid, real, cache.length)
        tables = self._tables(self.first_position + positions)
        numbers = jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1  # from 0
        read = jax.lax.dynamic_slice_in_dim(numbers, cache.length, length, axis=1)
        mask = masks_of(
            seen,
            queries=read,
            keys=numbers,
            window=self.config.window,
            windowed=self.config.windowed,
            n_before=self.first_position,
        )

        def step(layer, hidden, own):
            *slots, windowed = own
            past = (*slots, cache.length)
            return layer.extend(hidden, tables, mask, past=past, windowed=windowed)

        each = (cache.keys, cache.values, self._windowed())
        hidden, new = scan_layers(self.layers, step, hidden, each)
        slots = (cache.keys, cache.values)
        keys, values = written(slots, new, cache.length, axis=2)
        return self.norm(hidden), KVCache(
            keys=keys, values=values, valid=valid, length=cache.length + length
        )

    def read_prompt(self, cache: KVCache) -> KVCache:
        """The cache after the trained prompt was read.

        Args:
          cache: an empty one, with room for the prompt.
        """
        hidden, length = prepend(
            self.prompt, jnp.zeros((cache.valid.shape[0], 0, self.config.hidden_size))
        )
        hidden = hidden.astype(self.embed_tokens.embedding.dtype)
        positions = jnp.broadcast_to(
            jnp.arange(length, dtype=jnp.int32), hidden.shape[:2]
        )
        real = jnp.ones(positions.shape, bool)
        return self._extend(hidden, real, positions, cache)[1]


class LlamaForCausalLM(nnx.Module):
    """A Llama-family language model: tokens in, logits out.

    Padding may lie on either side. Deterministic. Norms' statistics, rotary angles,
    softmax and logits are always f32.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
      linear: `(n_in, n_out, bias, rngs) -> module` makes the layers' matrices; None:
        `dense_linear(dtype)`.

    References:
      Touvron et al., 2023, arXiv 2302.13971.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
      ...     num_attention_heads=2,
      ... )
      >>> def run(inputs):
      ...     return models.LlamaForCausalLM(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 30)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("model.layers",),
        prefixes=("", "model."),
        # A buffer of old versions; the head where it is the embedding (`heads` has
        # looked at it); another task's head.
        ignored=(r"rotary_emb\.inv_freq$", r"^lm_head\.weight$", r"^score\."),
        embedding=("model", "embed_tokens", "embedding"),
    )
    make_decoder: ClassVar[Callable[..., LlamaModel]] = LlamaModel

    def __init__(
        self,
        config: LlamaConfig,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        linear: MakeLinear | None = None,
    ):
        self.config = config
        self.model = self.make_decoder(config, rngs, dtype, linear)
        if not config.tie_word_embeddings:
            self.lm_head = dense_linear(dtype)(
                config.hidden_size, config.vocab_size, False, rngs
            )

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states [B, T, d] that the head reads, normalised.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens, or the number of each token's text,
            see `pack`; None: all are real.
          positions: i32[B, T]; None: counted over real tokens.
        """
        return self.model(input_ids, attention_mask, positions)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states.

        Args:
          hidden: [..., d].
        """
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden).astype(jnp.float32)
        embedding = self.model.embed_tokens.embedding[...]
        return jnp.einsum(
            "...d,vd->...v", hidden, embedding, preferred_element_type=jnp.float32
        )

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        key: jax.Array | None = None,
    ) -> Any:
        """Logits of every token; with a cache, the tokens are read behind those in it.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens, or the number of each token's text,
            see `pack`; of the new tokens only, where there is a cache. None: all are
            real.
          positions: i32[B, T]; None: counted over real tokens.
          cache: see `empty_cache`. Reading past its end is not noticed here; `generate`
            checks it.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.

        Returns:
          f32[B, T, V]; with a cache (f32[B, T, V], cache).
        """
        with randomness(key):
            if cache is None:
                return self.head(self.hidden(input_ids, attention_mask, positions))
            hidden, cache = self.model.extend(
                input_ids, attention_mask, positions, cache
            )
            return self.head(hidden), cache

    def next_logits(
        self, input_ids: jax.Array, attention_mask: jax.Array | None, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Logits after the last token alone, as `generate` needs them.

        Args:
          input_ids: i32[B, T], the new tokens.
          attention_mask: [B, T] of these tokens, 1 for real ones; None: all are.
          cache: see `empty_cache`.

        Returns:
          (logits f32[B, V], cache).
        """
        hidden, cache = self.model.extend(input_ids, attention_mask, None, cache)
        return self.head(hidden[:, -1]), cache

    def empty_cache(self, batch_size: int, max_length: int) -> KVCache:
        """A cache with room for prompt, padding and answer, in the weights' dtype.

        A trained prompt comes in addition and is in the cache already.

        Args:
          batch_size: rows.
          max_length: tokens of a row, at most the model's context.

        Raises:
          ValueError: more tokens than the model's context.
        """
        n_prompt = 0 if self.model.prompt is None else self.model.prompt().shape[0]
        room = (
            self.config.max_position_embeddings - self.model.first_position - n_prompt
        )
        if not 1 <= max_length <= room:
            raise ValueError(
                f"expected 1 <= max_length <= {room} (the model's context), got "
                f"max_length={max_length}"
            )
        length = max_length + n_prompt
        heads, width = self.config.num_key_value_heads, self.config.head_dim
        shape = (self.config.num_hidden_layers, batch_size, length, heads, width)
        slots = jnp.zeros(shape, self.model.embed_tokens.embedding.dtype)
        cache = KVCache(
            keys=slots,
            values=slots,
            valid=jnp.zeros((batch_size, length), bool),
            length=jnp.int32(0),
        )
        return self.model.read_prompt(cache) if n_prompt else cache


class LlamaForSequenceClassification(nnx.Module):
    """A Llama with a linear classifier: logits f32[B, num_labels].

    The classifier reads the hidden state of each row's last real token.

    Args:
      config: sizes.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of the decoder's weights and activations; the classifier stays f32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
      ...     num_attention_heads=2,
      ... )
      >>> def run(inputs):
      ...     model = models.LlamaForSequenceClassification(config, 2, nnx.Rngs(0))
      ...     return model(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("model.layers",),
        prefixes=("", "model."),
        new=("score",),
        ignored=(r"rotary_emb\.inv_freq$", r"^lm_head\."),
    )
    make_decoder: ClassVar[Callable[..., LlamaModel]] = LlamaModel

    def __init__(
        self,
        config: LlamaConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.model = self.make_decoder(config, rngs, dtype)
        self.score = classifier(config.hidden_size, num_labels, rngs, bias=False)

    def features(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """What the classifier sees, [B, d].

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
        """
        return last_real(self.model(input_ids, attention_mask), attention_mask)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32[B, num_labels] of tokens.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        with randomness(key):
            features = self.features(input_ids, attention_mask)
            return self.score(features.astype(jnp.float32))
