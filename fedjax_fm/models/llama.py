"""Llama-family decoders (Llama 1 to 3, TinyLlama, SmolLM2, Mistral, Qwen2, Qwen3).

Layers stacked on a leading axis and run by `lax.scan`.

Module names follow Hugging Face's `LlamaForCausalLM` without the layer number, so that
weights map by name and LoRA targets read as they do in PEFT (`q_proj`, `v_proj`).

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

from fedjax_fm.models.classifier import classifier, last_real
from fedjax_fm.models.generate import KVCache
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.rotary import (
    RotaryScaling,
    count_positions,
    rotary_tables,
    rotate,
)
from fedjax_fm.models.stacked import run_stacked, scan_layers, stack
from fedjax_fm.models.virtual_tokens import behind, prepend, seen_by_all, with_prefix
from fedjax_fm.models.weights import Naming
from fedjax_fm.models.windows import AttentionMask, checked_windows, masks_of


@dataclass(frozen=True)
class LlamaConfig:
    """The fields of `config.json` that change the computation, under Hugging Face's
    names and defaults.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = None  # type: ignore[assignment]  # None: as many as query heads
    head_dim: int = None  # type: ignore[assignment]  # None: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RotaryScaling | None = None
    attention_bias: bool = False
    attention_output_bias: bool = None  # type: ignore[assignment]  # None: as attention_bias; Qwen2: only q, k, v have one
    qk_norm: bool = (
        False  # Qwen3: queries and keys are normalised before they are rotated
    )
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = (
        None  # tokens that a token sees, itself among them; None: all before it
    )
    layer_types: tuple[str, ...] | None = (
        None  # "sliding_attention" or "full_attention"; None: every layer alike
    )

    def __post_init__(self):
        checked_windows(self.sliding_window, self.layer_types, self.num_hidden_layers)
        heads, kv_heads, width = (
            self.num_attention_heads,
            self.num_key_value_heads,
            self.hidden_size,
        )
        if kv_heads is None:
            object.__setattr__(self, "num_key_value_heads", heads)
        elif heads % kv_heads:
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
            )
        if self.head_dim is None:
            if width % heads:
                raise ValueError(
                    f"hidden_size={width} is not a multiple of num_attention_heads={heads}"
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
        kinds = self.layer_types or ()
        return (
            tuple(kind == "sliding_attention" for kind in kinds)
            if len(set(kinds)) > 1
            else None
        )

    @property
    def window(self) -> int | None:
        """`sliding_window`, None where no layer has it."""
        has_none = (
            self.layer_types is not None and "sliding_attention" not in self.layer_types
        )
        return None if has_none else self.sliding_window


# (in, out, bias, rngs) -> a linear module.
MakeLinear = Callable[[int, int, bool, nnx.Rngs], nnx.Module]


def dense_linear(dtype: Any) -> MakeLinear:
    """Makes `nnx.Linear` with weights of `dtype`, normal(0.02)."""

    def make(n_in: int, n_out: int, bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
        init = nnx.initializers.normal(0.02)
        return nnx.Linear(
            n_in, n_out, use_bias=bias, kernel_init=init, param_dtype=dtype, rngs=rngs
        )

    return make


class LlamaAttention(nnx.Module):
    """Causal attention in which num_attention_heads / num_key_value_heads query heads
    share a key and a value.
    """

    def __init__(
        self, config: LlamaConfig, dtype: Any, linear: MakeLinear, rngs: nnx.Rngs
    ):
        d, bias, width = config.hidden_size, config.attention_bias, config.head_dim
        self.head_dim = width
        self.kv_shape = (config.num_key_value_heads, width)
        self.prefix = nnx.data(None)
        self.q_proj = linear(d, config.num_attention_heads * width, bias, rngs)
        self.k_proj = linear(d, config.num_key_value_heads * width, bias, rngs)
        self.v_proj = linear(d, config.num_key_value_heads * width, bias, rngs)
        self.o_proj = linear(
            config.num_attention_heads * width, d, config.attention_output_bias, rngs
        )
        if config.qk_norm:
            self.q_norm, self.k_norm = (
                _norm(width, config, dtype, rngs),
                _norm(width, config, dtype, rngs),
            )
        self.qk_norm = config.qk_norm

    def __call__(
        self,
        hidden: jax.Array,
        tables: tuple,
        mask: jax.Array,
        past: tuple | None = None,
    ):
        """(attended [B, T, d], (key, value) [B, T, kv_heads, head_dim] of these tokens).

        `past` is (keys, values [B, S, kv_heads, head_dim], first free slot i32[]) of
        one layer; the tokens are then written to a copy, and `mask` is over all S
        slots.
        """

        def split(x):
            return x.reshape(
                *x.shape[:-1], -1, self.head_dim
            )  # [B, T, heads, head_dim]

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
            write = jax.lax.dynamic_update_slice_in_dim
            keys, values = (
                write(slot, new.astype(slot.dtype), start, axis=1)
                for slot, new in zip(slots, (key, value), strict=True)
            )
        keys, values, with_prefixes = with_prefix(self.prefix, keys, values, mask)
        attended = jax.nn.dot_product_attention(query, keys, values, mask=with_prefixes)
        return self.o_proj(attended.reshape(*hidden.shape[:-1], -1)), (key, value)


class LlamaMLP(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, linear: MakeLinear, rngs: nnx.Rngs):
        d, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = linear(d, width, bias, rngs)
        self.up_proj = linear(d, width, bias, rngs)
        self.down_proj = linear(width, d, bias, rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.down_proj(
            jax.nn.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        )


def _norm(width: int, config: LlamaConfig, dtype: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=config.rms_norm_eps, param_dtype=dtype, rngs=rngs)


class LlamaDecoderLayer(nnx.Module):
    """One decoder layer, pre-norm."""

    def __init__(
        self, config: LlamaConfig, dtype: Any, linear: MakeLinear, rngs: nnx.Rngs
    ):
        self.self_attn = LlamaAttention(config, dtype, linear, rngs)
        self.mlp = LlamaMLP(config, linear, rngs)
        self.input_layernorm = _norm(config.hidden_size, config, dtype, rngs)
        self.post_attention_layernorm = _norm(config.hidden_size, config, dtype, rngs)

    def extend(
        self,
        hidden: jax.Array,
        tables: tuple,
        mask: AttentionMask,
        past: tuple | None,
        windowed: Any,
    ):
        """(hidden, (key, value)) with what the cache must remember of these tokens.

        `windowed`: bool[], whether this layer is one of those with a window; None where
        all layers are alike.
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
        return self.extend(hidden, tables, mask, None, windowed)[0]


class LlamaModel(nnx.Module):
    """The decoder without its head: `model(input_ids i32[B, T], attention_mask [B, T])
    -> hidden [B, T, d]`.

    `attention_mask` is 1 for real tokens and 0 for padding; rows that hold several
    texts (see `pack`) number them 1, 2, ..., and a token sees only those of its own.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        linear: MakeLinear | None = None,
    ):
        linear = linear or dense_linear(dtype)
        self.config = config
        self.embed_tokens = nnx.Embed(
            config.vocab_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )
        self.layers = stack(
            lambda r: LlamaDecoderLayer(config, dtype, linear, r),
            config.num_hidden_layers,
            rngs,
        )
        self.norm = _norm(config.hidden_size, config, dtype, rngs)
        self.prompt = nnx.data(None)
        self.first_position = 0

    @property
    def vocabulary(self) -> nnx.Embed:
        """The embedding that a prompt is made of."""
        return self.embed_tokens

    def _windowed(self) -> jax.Array | None:
        """bool[layers], which layers have a window; None where all are alike."""
        return (
            None if self.config.windowed is None else jnp.asarray(self.config.windowed)
        )

    def _tables(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
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
        segments = (
            jnp.ones(input_ids.shape, jnp.int32)
            if attention_mask is None
            else attention_mask.astype(jnp.int32)
        )
        positions = count_positions(segments) if positions is None else positions
        hidden, n_prompt = prepend(self.prompt, self.embed_tokens(input_ids))
        length, limit = (
            hidden.shape[1] + self.first_position,
            self.config.max_position_embeddings,
        )
        if length > limit:
            raise ValueError(
                f"{length} tokens exceed the model's context of {limit}; shorten or split the text"
            )
        same_text = (
            segments[:, None, :, None] == segments[:, None, None, :]
        )  # [B, 1, T, T]
        causal = jnp.tril(seen_by_all(same_text, n_prompt, queries=True))
        numbers = behind(count_positions(segments), n_prompt)
        mask = masks_of(
            causal, numbers, numbers, self.config.window, self.config.windowed
        )
        tables = self._tables(self.first_position + behind(positions, n_prompt))
        hidden = run_stacked(self.layers, hidden, tables, mask, each=self._windowed())
        return self.norm(hidden[:, n_prompt:])

    def extend(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        positions: jax.Array | None,
        cache: KVCache,
    ) -> tuple[jax.Array, KVCache]:
        """Reads more tokens behind those in the cache: (hidden [B, T, d], cache)."""
        length, room = input_ids.shape[-1], cache.valid.shape[-1]
        if length > room:
            raise ValueError(f"{length} tokens do not fit into a cache of {room}")
        real = (
            jnp.ones(input_ids.shape, bool)
            if attention_mask is None
            else attention_mask.astype(bool)
        )
        if positions is None:
            positions = cache.valid.sum(-1, dtype=jnp.int32)[:, None] + count_positions(
                real
            )
        elif self.prompt is not None:
            positions = positions + self.prompt().shape[0]  # which lies in the cache
        return self._extend(self.embed_tokens(input_ids), real, positions, cache)

    def _extend(
        self, hidden: jax.Array, real: jax.Array, positions: jax.Array, cache: KVCache
    ):
        """`extend` for embedded tokens [B, T, d]; all arguments are needed."""
        length, room = hidden.shape[1], cache.valid.shape[-1]
        valid = jax.lax.dynamic_update_slice_in_dim(
            cache.valid, real, cache.length, axis=1
        )
        earlier = jnp.arange(room) <= (cache.length + jnp.arange(length))[:, None]
        tables = self._tables(self.first_position + positions)
        numbers = jnp.cumsum(valid, axis=-1, dtype=jnp.int32)
        read = jax.lax.dynamic_slice_in_dim(numbers, cache.length, length, axis=1)
        seen = earlier & valid[:, None, None, :]
        mask = masks_of(seen, read, numbers, self.config.window, self.config.windowed)

        def step(layer, hidden, own):
            *slots, windowed = own
            return layer.extend(hidden, tables, mask, (*slots, cache.length), windowed)

        each = (cache.keys, cache.values, self._windowed())
        hidden, new = scan_layers(self.layers, step, hidden, each)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(
                old, part.astype(old.dtype), cache.length, axis=2
            )
            for old, part in zip((cache.keys, cache.values), new, strict=True)
        )
        return self.norm(hidden), KVCache(
            keys=keys, values=values, valid=valid, length=cache.length + length
        )

    def read_prompt(self, cache: KVCache) -> KVCache:
        """The cache behind the prompt, of which nothing else is wanted."""
        hidden, length = prepend(
            self.prompt, jnp.zeros((cache.valid.shape[0], 0, self.config.hidden_size))
        )
        hidden = hidden.astype(self.embed_tokens.embedding.dtype)
        positions = jnp.broadcast_to(
            jnp.arange(length, dtype=jnp.int32), hidden.shape[:2]
        )
        return self._extend(hidden, jnp.ones(positions.shape, bool), positions, cache)[
            1
        ]


class LlamaForCausalLM(nnx.Module):
    """Decoder and head: `model(input_ids i32[B, T], attention_mask [B, T]) -> logits f32[B, T, V]`.

    Padding may lie on either side. Deterministic; `dtype` is that of weights and
    activations, while norms' statistics, rotary angles, softmax and logits are always
    f32.
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("model.layers",),
        prefixes=("", "model."),
        # A buffer of old versions; the head where it is the embedding (`heads` has
        # looked at it); another task's head.
        ignored=(r"rotary_emb\.inv_freq$", r"^lm_head\.weight$", r"^score\."),
        embedding=("model", "embed_tokens", "embedding"),
    )

    def __init__(
        self,
        config: LlamaConfig,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        linear: MakeLinear | None = None,
    ):
        self.config = config
        self.model = LlamaModel(config, rngs, dtype, linear)
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
        """What the head reads, [B, T, d], normalised."""
        return self.model(input_ids, attention_mask, positions)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states [..., d]."""
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
        """Logits f32[B, T, V]; with a cache, (logits, cache), the tokens being read
        behind those in the cache.

        Args:
          attention_mask: [B, T], 1 for real tokens; of the new tokens only, where there is a cache.
          positions: i32[B, T]; default: counted over real tokens.
          cache: see `empty_cache`. Reading past its end is not noticed here; `generate` checks it.
          key: drives dropout, where a method of fine-tuning has put some; None: deterministic.
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
        """(logits f32[B, V] after the last token, cache), as `generate` wants it.

        No logits of the prompt.
        """
        hidden, cache = self.model.extend(input_ids, attention_mask, None, cache)
        return self.head(hidden[:, -1]), cache

    def empty_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Room for `max_length` tokens (prompt, padding and answer) of `batch_size`
        rows, in the weights' dtype.

        A trained prompt comes in addition and is in the cache already.
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
    """A linear classifier on each row's last real token: logits f32[B, num_labels]."""

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("model.layers",),
        prefixes=("", "model."),
        new=("score",),
        ignored=(r"rotary_emb\.inv_freq$", r"^lm_head\."),
    )

    def __init__(
        self,
        config: LlamaConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.model = LlamaModel(config, rngs, dtype)
        self.score = classifier(config.hidden_size, num_labels, rngs, bias=False)

    def features(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """What the classifier sees, [B, d]."""
        return last_real(self.model(input_ids, attention_mask), attention_mask)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        with randomness(key):
            return self.score(
                self.features(input_ids, attention_mask).astype(jnp.float32)
            )
