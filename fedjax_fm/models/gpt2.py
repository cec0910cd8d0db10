"""GPT-2 with a key-value cache.

Layers are stacked on a leading axis and run by `lax.scan`.

Module names follow Hugging Face's `GPT2LMHeadModel` without the layer number; its
`Conv1D` kernels are [in, out], as ours are. Query, key and value are one fused matrix
`c_attn`.

References:
  Radford et al., 2019, Language Models are Unsupervised Multitask Learners.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.attention import dot_product
from fedjax_fm.models.bert import layer_norm
from fedjax_fm.models.classifier import classifier, last_real
from fedjax_fm.models.generate import KVCache
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.rotary import count_positions
from fedjax_fm.models.slots import real_tokens, seen_by, written
from fedjax_fm.models.stacked import run_stacked, scan_layers, stack
from fedjax_fm.models.virtual_tokens import behind, prepend, seen_by_all, with_prefix
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class GPT2Config:
    """A GPT-2's sizes: the fields of `config.json` that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      vocab_size: V, rows of the table of tokens.
      n_positions: positions, the longest text in tokens.
      n_embd: d, width of the hidden states.
      n_layer: decoder layers.
      n_head: heads, a divisor of `n_embd`.
      n_inner: width inside the feed-forward network; None: four times `n_embd`.
      activation_function: its name, see `activations.ACTIVATIONS`.
      layer_norm_epsilon: what layer normalisation adds to the variance.
      scale_attn_weights: must be True.
      scale_attn_by_inverse_layer_idx, add_cross_attention: must be False.
      tie_word_embeddings: whether the head is the table of tokens.

    Raises:
      ValueError: heads that do not divide the width, an unknown activation, or a
        setting that is not supported.

    Example:
      >>> GPT2Config(n_embd=8, n_head=2).n_inner
      32
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = None  # type: ignore[assignment]
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
    """Causal attention.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

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
        """Attends to these tokens, or to those in the cache and these.

        Args:
          hidden: [B, T, d].
          mask: bool, broadcast to [B, heads, T, T], with a cache to [B, heads, T, S].
          past: None, or (keys, values [B, S, heads, head_dim], first free slot i32[])
            of one layer; the tokens are then written to a copy.

        Returns:
          (attended [B, T, d], (key, value) [B, T, heads, head_dim] of these tokens).
        """
        query, key, value = (
            part.reshape(*hidden.shape[:-1], self.heads, -1)
            for part in jnp.split(self.c_attn(hidden), 3, axis=-1)
        )
        keys, values = key, value
        if past is not None:
            *slots, start = past
            keys, values = written(slots, (key, value), start, axis=1)
        keys, values, mask = with_prefix(self.prefix, keys, values, mask)  # type: ignore[assignment]
        attended = dot_product(query, keys, values, mask=mask)
        return self.c_proj(attended.reshape(hidden.shape)), (key, value)


class GPT2MLP(nnx.Module):
    """The feed-forward network: c_proj(act(c_fc(x))).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

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
        """[B, T, d] from hidden [B, T, d]."""
        wide = ACTIVATIONS[self.act](self.c_fc(hidden))
        return self.c_proj(wide)


class GPT2Block(nnx.Module):
    """One decoder layer, pre-norm.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs, dtype: Any):
        self.ln_1 = layer_norm(config.n_embd, config.layer_norm_epsilon, dtype, rngs)
        self.attn = GPT2Attention(config, rngs, dtype)
        self.ln_2 = layer_norm(config.n_embd, config.layer_norm_epsilon, dtype, rngs)
        self.mlp = GPT2MLP(config, rngs, dtype)

    def extend(self, hidden: jax.Array, mask: jax.Array, past: tuple | None = None):
        """Runs the layer on more tokens.

        Args:
          hidden: [B, T, d].
          mask: as of `GPT2Attention`.
          past: as of `GPT2Attention`.

        Returns:
          (hidden [B, T, d], (key, value)), with what the cache must remember of these
          tokens.
        """
        attended, remembered = self.attn(self.ln_1(hidden), mask, past)
        hidden = hidden + attended
        return hidden + self.mlp(self.ln_2(hidden)), remembered

    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        return self.extend(hidden, mask)[0]


_STACKED, _IN_OUT = ("h",), ("c_attn", "c_proj", "c_fc")
_BUFFERS = (r"\.attn\.(masked_)?bias$",)  # of old versions: the causal mask


class GPT2Model(nnx.Module):
    """The decoder without its head.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
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
        """The embedding of tokens, of which a trained prompt is made."""
        return self.wte

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
        hidden, n_prompt = prepend(self.prompt, self.wte(input_ids))
        length, limit = hidden.shape[1] + self.first_position, self.config.n_positions
        if length > limit:
            raise ValueError(
                f"{length} tokens exceed the model's context of {limit}; shorten or "
                "split the text"
            )
        # bool[B, 1, T, T]
        same_text = segments[:, None, :, None] == segments[:, None, None, :]
        mask = jnp.tril(seen_by_all(same_text, n_prompt, queries=True))
        hidden = hidden + self.wpe(self.first_position + behind(positions, n_prompt))
        hidden = run_stacked(self.h, hidden, mask)
        return self.ln_f(hidden[:, n_prompt:])

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
          cache: as of `GPT2LMHeadModel.empty_cache`.

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
        return self._extend(self.wte(input_ids), real, positions, cache)

    def _extend(
        self, hidden: jax.Array, real: jax.Array, positions: jax.Array, cache: KVCache
    ):
        """Extends the cache by embedded tokens [B, T, d] without their positions."""
        valid, mask = seen_by(cache.valid, real, cache.length)
        hidden = hidden + self.wpe(self.first_position + positions)

        def step(layer, hidden, slots):
            return layer.extend(hidden, mask, (*slots, cache.length))

        hidden, new = scan_layers(self.h, step, hidden, (cache.keys, cache.values))
        slots = (cache.keys, cache.values)
        keys, values = written(slots, new, cache.length, axis=2)
        return self.ln_f(hidden), KVCache(
            keys=keys, values=values, valid=valid, length=cache.length + real.shape[1]
        )

    def read_prompt(self, cache: KVCache) -> KVCache:
        """The cache after the trained prompt was read.

        Args:
          cache: an empty one, with room for the prompt.
        """
        hidden, length = prepend(
            self.prompt, jnp.zeros((cache.valid.shape[0], 0, self.config.n_embd))
        )
        positions = jnp.broadcast_to(
            jnp.arange(length, dtype=jnp.int32), hidden.shape[:2]
        )
        real = jnp.ones(positions.shape, bool)
        hidden = hidden.astype(self.wte.embedding.dtype)
        return self._extend(hidden, real, positions, cache)[1]


class GPT2LMHeadModel(nnx.Module):
    """GPT-2 with its language-modelling head: tokens in, logits out.

    Padding may lie on either side: positions count real tokens.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations; logits are f32.

    References:
      Radford et al., 2019, Language Models are Unsupervised Multitask Learners.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2
      ... )
      >>> def run(inputs):
      ...     return models.GPT2LMHeadModel(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 30)
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
            self.lm_head = nnx.Linear(
                config.n_embd,
                config.vocab_size,
                use_bias=False,
                kernel_init=nnx.initializers.normal(0.02),
                param_dtype=dtype,
                rngs=rngs,
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
        return self.transformer(input_ids, attention_mask, positions)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states.

        Args:
          hidden: [..., d].
        """
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
            hidden, cache = self.transformer.extend(
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
        hidden, cache = self.transformer.extend(input_ids, attention_mask, None, cache)
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
        model, config = self.transformer, self.config
        n_prompt = 0 if model.prompt is None else model.prompt().shape[0]
        room = config.n_positions - model.first_position - n_prompt
        if not 1 <= max_length <= room:
            raise ValueError(
                f"expected 1 <= max_length <= {room} (the model's context), got "
                f"max_length={max_length}"
            )
        length = max_length + n_prompt
        heads, width = config.n_head, config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, length, heads, width)
        slots = jnp.zeros(shape, model.wte.embedding.dtype)
        cache = KVCache(
            keys=slots,
            values=slots,
            valid=jnp.zeros((batch_size, length), bool),
            length=jnp.int32(0),
        )
        return model.read_prompt(cache) if n_prompt else cache


class GPT2ForSequenceClassification(nnx.Module):
    """GPT-2 with a linear classifier on the last real token: logits f32[B, num_labels].

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
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2
      ... )
      >>> def run(inputs):
      ...     model = models.GPT2ForSequenceClassification(config, 2, nnx.Rngs(0))
      ...     return model(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 2)
    """

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
        """What the classifier sees, [B, d].

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
        """
        return last_real(self.transformer(input_ids, attention_mask), attention_mask)

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
