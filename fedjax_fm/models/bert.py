"""BERT-family encoders: layers stacked on a leading axis and run by `lax.scan`.

Module names follow Hugging Face's `BertModel` without the layer number, so that weights
map by name and LoRA targets read as they do in PEFT (`query`, `value`, `output.dense`).

References:
  Devlin et al., 2018, arXiv 1810.04805.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.attention import attend
from fedjax_fm.models.classifier import classifier, mean_of_real
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.stacked import run_stacked, stack
from fedjax_fm.models.virtual_tokens import behind, prepend, seen_by_all
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class BertConfig:
    """A BERT's sizes: the fields of `config.json` that change the computation.

    Names are Hugging Face's, defaults those of bert-base-uncased.

    Attributes:
      vocab_size: V, rows of the table of words.
      hidden_size: d, width of the hidden states.
      num_hidden_layers: encoder layers.
      num_attention_heads: heads, a divisor of `hidden_size`.
      intermediate_size: width inside the feed-forward network.
      max_position_embeddings: positions, the longest text in tokens.
      type_vocab_size: segments that are told apart.
      layer_norm_eps: what layer normalisation adds to the variance.
      hidden_act: an activation's name, see `activations.ACTIVATIONS`.
      pad_token_id: the padding's id; RoBERTa's positions depend on it, BERT ignores it.
      is_decoder: causal: a token sees itself and those before it.
      add_cross_attention: must be False.

    Raises:
      ValueError: heads that do not divide the width, an unknown activation, or
        cross-attention.

    Example:
      >>> BertConfig(hidden_size=8, num_attention_heads=2).intermediate_size
      3072
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 0
    is_decoder: bool = False  # causal: a token sees itself and those before it
    add_cross_attention: bool = False

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.add_cross_attention:
            raise ValueError(
                "add_cross_attention=True is not supported: there is no encoder "
                "whose output could be read"
            )
        check_activation("hidden_act", self.hidden_act)


def layer_norm(width: int, epsilon: float, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation with statistics in f32.

    Args:
      width: of what is normalised, the last axis.
      epsilon: added to the variance.
      dtype: of scale and bias.
      rngs: needed by nnx; nothing is drawn.

    Returns:
      The module, with scale one and bias zero.
    """
    # The fast variance E[x^2] - E[x]^2 loses digits that parity with torch needs.
    return nnx.LayerNorm(
        width, epsilon=epsilon, use_fast_variance=False, param_dtype=dtype, rngs=rngs
    )


class BertEmbeddings(nnx.Module):
    """Sum of word, position and segment embeddings, normalised.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
      width: of the embeddings; None: `config.hidden_size`.
    """

    def __init__(
        self,
        config: BertConfig,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        width: int | None = None,
    ):
        d = config.hidden_size if width is None else width
        self.word_embeddings = nnx.Embed(
            config.vocab_size, d, param_dtype=dtype, rngs=rngs
        )
        self.position_embeddings = nnx.Embed(
            config.max_position_embeddings, d, param_dtype=dtype, rngs=rngs
        )
        self.token_type_embeddings = nnx.Embed(
            config.type_vocab_size, d, param_dtype=dtype, rngs=rngs
        )
        self.LayerNorm = layer_norm(d, config.layer_norm_eps, dtype, rngs)
        self.first_row = 0  # of the position table that a token has
        self.first_position = 0

    def position_ids(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """The number of each token in its text, i32[B, T]; BERT counts padding, too.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], which BERT does not read here and RoBERTa does.
        """
        return jnp.broadcast_to(
            jnp.arange(input_ids.shape[-1], dtype=jnp.int32), input_ids.shape
        )

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array | None,
        prompt: Any = None,
        attention_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, int]:
        """The embedded text behind a prompt of p tokens.

        Args:
          input_ids: i32[B, T].
          token_type_ids: i32[B, T], the segment of each token; None: all 0.
          prompt: of `virtual_tokens`; None: p = 0.
          attention_mask: [B, T], for `position_ids`.

        Returns:
          ([B, p + T, d], p).
        """
        words, n_prompt = prepend(prompt, self.word_embeddings(input_ids))
        positions = behind(self.position_ids(input_ids, attention_mask), n_prompt)
        positions = self.first_row + self.first_position + positions
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        types = self.token_type_embeddings(jnp.pad(types, ((0, 0), (n_prompt, 0))))
        embedded = self.LayerNorm(words + self.position_embeddings(positions) + types)
        return embedded, n_prompt


class AttentionSizes(Protocol):
    """The fields of a configuration that self-attention reads."""

    @property
    def hidden_size(self) -> int:
        """Width d of the hidden states."""
        ...

    @property
    def num_attention_heads(self) -> int:
        """Heads, a divisor of the width."""
        ...


class BertSelfAttention(nnx.Module):
    """Multi-head self-attention without its output projection.

    Args:
      config: `hidden_size` and `num_attention_heads` are read.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(
        self, config: AttentionSizes, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.kv_shape = (self.heads, d // self.heads)
        self.prefix = nnx.data(None)
        self.query = nnx.Linear(d, d, param_dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(d, d, param_dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(d, d, param_dtype=dtype, rngs=rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        return attend(
            query=self.query(hidden),
            key=self.key(hidden),
            value=self.value(hidden),
            heads=self.heads,
            mask=mask,
            prefix=self.prefix,
        )


class _ResidualOutput(nnx.Module):
    """A linear layer with a residual: LayerNorm(dense(x) + residual)."""

    def __init__(
        self, width: int, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.dense = nnx.Linear(width, config.hidden_size, param_dtype=dtype, rngs=rngs)
        self.LayerNorm = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )

    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        """[B, T, d] from x [B, T, width] and residual [B, T, d]."""
        return self.LayerNorm(self.dense(x) + residual)


class BertAttention(nnx.Module):
    """Self-attention and its residual output.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.self = BertSelfAttention(config, rngs, dtype)
        self.output = _ResidualOutput(config.hidden_size, config, rngs, dtype)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        return self.output(self.self(hidden, mask), hidden)


class BertIntermediate(nnx.Module):
    """The widening half of the feed-forward network.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.dense = nnx.Linear(
            config.hidden_size, config.intermediate_size, param_dtype=dtype, rngs=rngs
        )
        self.act = config.hidden_act

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, intermediate_size] from hidden [B, T, d]."""
        return ACTIVATIONS[self.act](self.dense(hidden))


class BertLayer(nnx.Module):
    """One encoder layer, post-norm.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.attention = BertAttention(config, rngs, dtype)
        self.intermediate = BertIntermediate(config, rngs, dtype)
        self.output = _ResidualOutput(config.intermediate_size, config, rngs, dtype)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        attended = self.attention(hidden, mask)
        return self.output(self.intermediate(attended), attended)


class BertEncoder(nnx.Module):
    """All layers; every parameter of `layer` has a leading axis of num_hidden_layers.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.layer = stack(
            lambda rngs: BertLayer(config, rngs, dtype), config.num_hidden_layers, rngs
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        return run_stacked(self.layer, hidden, mask)


class BertPooler(nnx.Module):
    """A tanh layer on the first token: tanh(dense(x_0)).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.dense = nnx.Linear(
            config.hidden_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, d] from hidden [B, T, d]."""
        return jnp.tanh(self.dense(hidden[:, 0]))


def attention_mask_of(
    attention_mask: jax.Array | None, length: int, n_prompt: int, causal: bool
) -> jax.Array | None:
    """Which token sees which.

    Args:
      attention_mask: [B, T], 1 for real tokens.
      length: S = p + T tokens, the prompt's p among them.
      n_prompt: p, seen by all.
      causal: whether a token sees itself and those before it only.

    Returns:
      bool, broadcast to [B, heads, S, S]; None where every token sees every other.

    Example:
      >>> mask = attention_mask_of(None, length=2, n_prompt=0, causal=True)
      >>> mask[0, 0].astype(int).tolist()
      [[1, 0], [1, 1]]
    """
    mask = None
    if attention_mask is not None:
        mask = seen_by_all(attention_mask.astype(bool), n_prompt)[:, None, None, :]
    if not causal:
        return mask
    before = jnp.tril(jnp.ones((1, 1, length, length), bool))
    return before if mask is None else mask & before


class BertModel(nnx.Module):
    """BERT's encoder: tokens in, hidden states out.

    Deterministic: the dropout of pre-training is not applied. With `is_decoder` in its
    configuration it is causal.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations, f32 by default.
      pooler: whether it has the layer on the first token, which classifiers of whole
        texts read.

    References:
      Devlin et al., 2018, arXiv 1810.04805.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.BertConfig(
      ...     vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16,
      ... )
      >>> def run(inputs):
      ...     return models.BertModel(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 8)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "bert."),
        new=("pooler",),
        # A buffer, and heads of other tasks that a checkpoint may carry.
        ignored=(r"position_ids$", r"^cls\.", r"^(classifier|qa_outputs)\."),
    )

    def __init__(
        self,
        config: BertConfig,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        pooler: bool = True,
    ):
        self.config = config
        self.embeddings = BertEmbeddings(config, rngs, dtype)
        self.encoder = BertEncoder(config, rngs, dtype)
        if pooler:
            self.pooler = BertPooler(config, rngs, dtype)
        self.prompt = nnx.data(None)

    @property
    def vocabulary(self) -> nnx.Embed:
        """The embedding of words, of which a trained prompt is made."""
        return self.embeddings.word_embeddings

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states [B, T, d] of tokens.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
          token_type_ids: i32[B, T], the segment of each token; None: all 0.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.

        Raises:
          ValueError: more tokens than the model has positions.
        """
        with randomness(key):
            hidden, n_prompt = self.embeddings(
                input_ids, token_type_ids, self.prompt, attention_mask
            )
            length = hidden.shape[1] + self.embeddings.first_position
            room = self.config.max_position_embeddings - self.embeddings.first_row
            if length > room:
                raise ValueError(
                    f"{length} tokens exceed the model's {room} positions; truncate"
                )
            mask = attention_mask_of(
                attention_mask, hidden.shape[1], n_prompt, self.config.is_decoder
            )
            return self.encoder(hidden, mask)[:, n_prompt:]


class BertForSequenceClassification(nnx.Module):
    """BERT with pooling and a linear classifier: logits f32[B, num_labels].

    Args:
      config: sizes.
      num_labels: classes.
      pooling: "cls" (BERT's own: tanh layer on the first token) or "mean" over real
        tokens (the way sentence-transformers reads MiniLM).
      rngs: draws the initial weights.
      dtype: of the encoder's weights and activations; the classifier stays f32.

    Raises:
      ValueError: another pooling, or no label.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.BertConfig(
      ...     vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16,
      ... )
      >>> def run(inputs):
      ...     model = models.BertForSequenceClassification(config, 2, "mean", nnx.Rngs(0))
      ...     return model(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "bert."),
        new=("classifier", "bert.pooler"),
        ignored=(r"position_ids$", r"^cls\.", r"^qa_outputs\."),
    )

    def __init__(
        self,
        config: BertConfig,
        num_labels: int,
        pooling: str,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        if pooling not in ("cls", "mean"):
            raise ValueError(
                f"expected pooling 'cls' or 'mean', or 'none' for a label of each "
                f"token (BertForTokenClassification), got {pooling!r}"
            )
        self.config, self.pooling = config, pooling
        self.bert = BertModel(config, rngs, dtype)
        self.classifier = classifier(config.hidden_size, num_labels, rngs)

    def features(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What the classifier sees, [B, d].

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
          token_type_ids: i32[B, T], the segment of each token; None: all 0.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        hidden = self.bert(input_ids, attention_mask, token_type_ids, key)
        if self.pooling == "cls":
            return self.bert.pooler(hidden)
        return mean_of_real(hidden, attention_mask)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32[B, num_labels]; arguments as those of `features`."""
        features = self.features(input_ids, attention_mask, token_type_ids, key)
        return self.classifier(features.astype(jnp.float32))
