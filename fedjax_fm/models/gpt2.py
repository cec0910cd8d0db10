"""GPT-2: layers stacked on a leading axis and run by `lax.scan`, with a key-value cache.

Module names follow Hugging Face's `GPT2LMHeadModel` without the layer number; its
`Conv1D` kernels are [in, out], as ours are. Query, key and value are one fused matrix
`c_attn`.

Radford et al., 2019, Language Models are Unsupervised Multitask Learners.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.bert import layer_norm
from fedjax_fm.models.classifier import classifier, last_real
from fedjax_fm.models.generate import KVCache
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.rotary import count_positions
from fedjax_fm.models.stacked import run_stacked, scan_layers, stack
from fedjax_fm.models.virtual_tokens import behind, prepend, seen_by_all, with_prefix
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class GPT2Config:
    """The fields of `config.json` that change the computation, under Hugging Face's
    names and defaults.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = None  # type: ignore[assignment]  # None: four times n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.n_inner is None:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}"
            )
        check_activation("activation_function", self.activation_function)
        for field, supported in (
            ("scale_attn_weights", True),
            ("scale_attn_by_inverse_layer_idx", False),
            ("add_cross_attention", False),
        ):
            if getattr(self, field) is not supported:
                raise ValueError(f"{field}={getattr(self, field)} is not supported")


class GPT2Attention(nnx.Module):
    """Causal attention."""

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs, dtype: Any):
        d, init = config.n_embd, nnx.initializers.normal(0.02)
        self.heads = config.n_head
        self.kv_shape = (self.heads, d // self.heads)
        self.prefix = nnx.data(None)
        self.c_attn = nnx.Linear(
            d, 3 * d, kernel_init=init, param_dtype=dtype, rngs=rngs
        )
        self.c_proj = nnx.Linear(d, d, kernel_init=init, param_dtype=dtype, rngs=rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array, past: tuple | None = None):
        """(attended [B, T, d], (key, value) [B, T, heads, head_dim] of these tokens).

        `past` is (keys, values [B, S, heads, head_dim], first free slot i32[]) of one
        layer; the tokens are then written to a copy, and `mask` is over all S slots.
        """
        query, key, value = (
            part.reshape(*hidden.shape[:-1], self.heads, -1)
            for part in jnp.split(self.c_attn(hidden), 3, axis=-1)
        )
        keys, values = key, value
        if past is not None:
            *slots, start = past
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(
                    slot, new.astype(slot.dtype), start, axis=1
                )
                for slot, new in zip(slots, (key, value), strict=True)
            )
        keys, values, mask = with_prefix(self.prefix, keys, values, mask)  # type: ignore[assignment]
        attended = jax.nn.dot_product_attention(query, keys, values, mask=mask)
        return self.c_proj(attended.reshape(hidden.shape)), (key, value)


class GPT2MLP(nnx.Module):
    """c_proj(act(c_fc(x)))."""

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs, dtype: Any):
        init = nnx.initializers.normal(0.02)
        self.act = config.activation_function
        self.c_fc = nnx.Linear(
            config.n_embd,
            config.n_inner,
            kernel_init=init,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.c_proj = nnx.Linear(
            config.n_inner,
            config.n_embd,
            kernel_init=init,
            param_dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.c_proj(ACTIVATIONS[self.act](self.c_fc(hidden)))


class GPT2Block(nnx.Module):
    """One decoder layer, pre-norm."""

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs, dtype: Any):
        self.ln_1 = layer_norm(config.n_embd, config.layer_norm_epsilon, dtype, rngs)
        self.attn = GPT2Attention(config, rngs, dtype)
        self.ln_2 = layer_norm(config.n_embd, config.layer_norm_epsilon, dtype, rngs)
        self.mlp = GPT2MLP(config, rngs, dtype)

    def extend(self, hidden: jax.Array, mask: jax.Array, past: tuple | None = None):
        """(hidden, (key, value)) with what the cache must remember of these tokens."""
        attended, remembered = self.attn(self.ln_1(hidden), mask, past)
        hidden = hidden + attended
        return hidden + self.mlp(self.ln_2(hidden)), remembered

    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        return self.extend(hidden, mask)[0]


_STACKED, _IN_OUT = ("h",), ("c_attn", "c_proj", "c_fc")
_BUFFERS = (r"\.attn\.(masked_)?bias$",)  # of old versions: the causal mask


class GPT2Model(nnx.Module):
    """The decoder without its head: `model(input_ids i32[B, T], attention_mask [B, T])
    -> hidden [B, T, d]`.

    `attention_mask` is 1 for real tokens and 0 for padding; rows that hold several
    texts (see `pack`) number them 1, 2, ..., and a token sees only those of its own.
    """

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        init = nnx.initializers.normal(0.02)
        self.config = config
        self.wte = nnx.Embed(
            config.vocab_size,
            config.n_embd,
            embedding_init=init,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.wpe = nnx.Embed(
            config.n_positions,
            config.n_embd,
            embedding_init=init,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.h = stack(lambda r: GPT2Block(config, r, dtype), config.n_layer, rngs)
        self.ln_f = layer_norm(config.n_embd, config.layer_norm_epsilon, dtype, rngs)
        self.prompt = nnx.data(None)
        self.first_position = 0

    @property
    def vocabulary(self) -> nnx.Embed:
        """The embedding that a prompt is made of."""
        return self.wte

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
        hidden, n_prompt = prepend(self.prompt, self.wte(input_ids))
        length, limit = hidden.shape[1] + self.first_position, self.config.n_positions
        if length > limit:
            raise ValueError(
                f"{length} tokens exceed the model's context of {limit}; shorten or split the text"
            )
        same_text = (
            segments[:, None, :, None] == segments[:, None, None, :]
        )  # [B, 1, T, T]
        mask = jnp.tril(seen_by_all(same_text, n_prompt, queries=True))
        hidden = hidden + self.wpe(self.first_position + behind(positions, n_prompt))
        return self.ln_f(run_stacked(self.h, hidden, mask)[:, n_prompt:])

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
        return self._extend(self.wte(input_ids), real, positions, cache)

    def _extend(
        self, hidden: jax.Array, real: jax.Array, positions: jax.Array, cache: KVCache
    ):
        """`extend` for embedded tokens [B, T, d] without their positions."""
        length, room = hidden.shape[1], cache.valid.shape[-1]
        valid = jax.lax.dynamic_update_slice_in_dim(
            cache.valid, real, cache.length, axis=1
        )
        earlier = jnp.arange(room) <= (cache.length + jnp.arange(length))[:, None]
        mask = earlier & valid[:, None, None, :]
        hidden = hidden + self.wpe(self.first_position + positions)

        def step(layer, hidden, slots):
            return layer.extend(hidden, mask, (*slots, cache.length))

        hidden, new = scan_layers(self.h, step, hidden, (cache.keys, cache.values))
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(
                old, part.astype(old.dtype), cache.length, axis=2
            )
            for old, part in zip((cache.keys, cache.values), new, strict=True)
        )
        return self.ln_f(hidden), KVCache(
            keys=keys, values=values, valid=valid, length=cache.length + length
        )

    def read_prompt(self, cache: KVCache) -> KVCache:
        """The cache behind the prompt, of which nothing else is wanted."""
        hidden, length = prepend(
            self.prompt, jnp.zeros((cache.valid.shape[0], 0, self.config.n_embd))
        )
        positions = jnp.broadcast_to(
            jnp.arange(length, dtype=jnp.int32), hidden.shape[:2]
        )
        real = jnp.ones(positions.shape, bool)
        return self._extend(
            hidden.astype(self.wte.embedding.dtype), real, positions, cache
        )[1]


class GPT2LMHeadModel(nnx.Module):
    """Decoder and head: `model(input_ids i32[B, T], attention_mask [B, T]) -> logits f32[B, T, V]`.

    Padding may lie on either side: positions count real tokens.
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=_STACKED,
        prefixes=("", "transformer."),
        in_out=_IN_OUT,
        ignored=(*_BUFFERS, r"^lm_head\.weight$", r"^score\."),
        embedding=("transformer", "wte", "embedding"),
    )

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.transformer = GPT2Model(config, rngs, dtype)
        if not config.tie_word_embeddings:
            init, sizes = (
                nnx.initializers.normal(0.02),
                (config.n_embd, config.vocab_size),
            )
            self.lm_head = nnx.Linear(
                *sizes, use_bias=False, kernel_init=init, param_dtype=dtype, rngs=rngs
            )

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """What the head reads, [B, T, d], normalised."""
        return self.transformer(input_ids, attention_mask, positions)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states [..., d]."""
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden).astype(jnp.float32)
        embedding = self.transformer.wte.embedding[...]
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

        Arguments as those of `LlamaForCausalLM`.
        """
        with randomness(key):
            if cache is None:
                return self.head(self.hidden(input_ids, attention_mask, positions))
            hidden, cache = self.transformer.extend(
                input_ids, attention_mask, positions, cache
            )
            return self.head(hidden), cache

    def next_logits(
        self, input_ids: jax.Array, attention_mask: jax.Array | None, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """(logits f32[B, V] after the last token, cache), as `generate` wants it.

        No logits of the prompt.
        """
        hidden, cache = self.transformer.extend(input_ids, attention_mask, None, cache)
        return self.head(hidden[:, -1]), cache

    def empty_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Room for `max_length` tokens (prompt, padding and answer) of `batch_size`
        rows, in the weights' dtype.

        A trained prompt comes in addition and is in the cache already.
        """
        model, config = self.transformer, self.config
        n_prompt = 0 if model.prompt is None else model.prompt().shape[0]
        room = config.n_positions - model.first_position - n_prompt
        if not 1 <= max_length <= room:
            raise ValueError(
                f"expected 1 <= max_length <= {room} (the model's context), got "
                f"max_length={max_length}"
            )
        length = max_length + n_prompt
        shape = (
            config.n_layer,
            batch_size,
            length,
            config.n_head,
            config.n_embd // config.n_head,
        )
        slots = jnp.zeros(shape, model.wte.embedding.dtype)
        cache = KVCache(
            keys=slots,
            values=slots,
            valid=jnp.zeros((batch_size, length), bool),
            length=jnp.int32(0),
        )
        return model.read_prompt(cache) if n_prompt else cache


class GPT2ForSequenceClassification(nnx.Module):
    """A linear classifier on each row's last real token: logits f32[B, num_labels]."""

    hugging_face: ClassVar[Naming] = Naming(
        stacked=_STACKED,
        prefixes=("", "transformer."),
        in_out=_IN_OUT,
        new=("score",),
        ignored=(*_BUFFERS, r"^lm_head\."),
    )

    def __init__(
        self,
        config: GPT2Config,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.transformer = GPT2Model(config, rngs, dtype)
        self.score = classifier(config.n_embd, num_labels, rngs, bias=False)

    def features(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """What the classifier sees, [B, d]."""
        return last_real(self.transformer(input_ids, attention_mask), attention_mask)

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
