"""DistilBERT: BERT without segments and pooler.

Module names follow Hugging Face's `DistilBertModel` without the layer number.

References:
  Sanh et al., 2019, arXiv 1910.01108.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.attention import attend
from fedjax_fm.models.bert import layer_norm
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.stacked import run_stacked, stack
from fedjax_fm.models.virtual_tokens import prepend, seen_by_all
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class DistilBertConfig:
    """A DistilBERT's sizes: the fields of `config.json` that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      vocab_size: V, rows of the table of words.
      max_position_embeddings: positions, the longest text in tokens.
      n_layers: encoder layers.
      n_heads: heads, a divisor of `dim`.
      dim: d, width of the hidden states.
      hidden_dim: width inside the feed-forward network.
      activation: its name, see `activations.ACTIVATIONS`.
      pad_token_id: the padding's id; nothing is computed with it.

    Raises:
      ValueError: heads that do not divide the width, or an unknown activation.
    """

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    activation: str = "gelu"
    pad_token_id: int = 0

    def __post_init__(self):
        if self.dim % self.n_heads:
            raise ValueError(
                f"dim={self.dim} is not a multiple of n_heads={self.n_heads}"
            )
        check_activation("activation", self.activation)


_EPSILON = 1e-12


class DistilBertEmbeddings(nnx.Module):
    """Sum of word and position embeddings, normalised.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: DistilBertConfig, rngs: nnx.Rngs, dtype: Any):
        d = config.dim
        self.word_embeddings = nnx.Embed(
            config.vocab_size, d, param_dtype=dtype, rngs=rngs
        )
        self.position_embeddings = nnx.Embed(
            config.max_position_embeddings, d, param_dtype=dtype, rngs=rngs
        )
        self.LayerNorm = layer_norm(d, _EPSILON, dtype, rngs)
        self.first_position = 0

    def __call__(
        self, input_ids: jax.Array, prompt: Any = None
    ) -> tuple[jax.Array, int]:
        """The embedded text behind a prompt of p tokens.

        Args:
          input_ids: i32[B, T].
          prompt: of `virtual_tokens`; None: p = 0.

        Returns:
          ([B, p + T, d], p).
        """
        words, n_prompt = prepend(prompt, self.word_embeddings(input_ids))
        positions = jnp.broadcast_to(
            self.first_position + jnp.arange(words.shape[1]), words.shape[:2]
        )
        return self.LayerNorm(words + self.position_embeddings(positions)), n_prompt


class DistilBertAttention(nnx.Module):
    """Multi-head self-attention with its output projection.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: DistilBertConfig, rngs: nnx.Rngs, dtype: Any):
        d = config.dim
        self.heads = config.n_heads
        self.kv_shape = (self.heads, d // self.heads)
        self.prefix = nnx.data(None)
        self.q_lin, self.k_lin, self.v_lin, self.out_lin = (
            nnx.Linear(d, d, param_dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        attended = attend(
            query=self.q_lin(hidden),
            key=self.k_lin(hidden),
            value=self.v_lin(hidden),
            heads=self.heads,
            mask=mask,
            prefix=self.prefix,
        )
        return self.out_lin(attended)


class DistilBertFFN(nnx.Module):
    """The feed-forward network: lin2(act(lin1(x))).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: DistilBertConfig, rngs: nnx.Rngs, dtype: Any):
        self.act = config.activation
        self.lin1 = nnx.Linear(
            config.dim, config.hidden_dim, param_dtype=dtype, rngs=rngs
        )
        self.lin2 = nnx.Linear(
            config.hidden_dim, config.dim, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, d] from hidden [B, T, d]."""
        wide = ACTIVATIONS[self.act](self.lin1(hidden))
        return self.lin2(wide)


class DistilBertLayer(nnx.Module):
    """One encoder layer, post-norm.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: DistilBertConfig, rngs: nnx.Rngs, dtype: Any):
        self.attention = DistilBertAttention(config, rngs, dtype)
        self.sa_layer_norm = layer_norm(config.dim, _EPSILON, dtype, rngs)
        self.ffn = DistilBertFFN(config, rngs, dtype)
        self.output_layer_norm = layer_norm(config.dim, _EPSILON, dtype, rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        hidden = self.sa_layer_norm(self.attention(hidden, mask) + hidden)
        return self.output_layer_norm(self.ffn(hidden) + hidden)


class DistilBertTransformer(nnx.Module):
    """All layers; every parameter of `layer` has a leading axis of n_layers.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: DistilBertConfig, rngs: nnx.Rngs, dtype: Any):
        self.layer = stack(
            lambda r: DistilBertLayer(config, r, dtype), config.n_layers, rngs
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        return run_stacked(self.layer, hidden, mask)


_OTHER_HEADS = (r"position_ids$", r"^(vocab_\w+|qa_outputs)\.")


class DistilBertModel(nnx.Module):
    """DistilBERT's encoder: tokens in, hidden states out.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations, f32 by default.

    References:
      Sanh et al., 2019, arXiv 1910.01108.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.DistilBertConfig(
      ...     vocab_size=30, dim=8, n_layers=2, n_heads=2, hidden_dim=16
      ... )
      >>> def run(inputs):
      ...     return models.DistilBertModel(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 8)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("transformer.layer",),
        prefixes=("", "distilbert."),
        ignored=(*_OTHER_HEADS, r"^(pre_)?classifier\."),
    )

    def __init__(
        self, config: DistilBertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.config = config
        self.embeddings = DistilBertEmbeddings(config, rngs, dtype)
        self.transformer = DistilBertTransformer(config, rngs, dtype)
        self.prompt = nnx.data(None)

    @property
    def vocabulary(self) -> nnx.Embed:
        """The embedding of words, of which a trained prompt is made."""
        return self.embeddings.word_embeddings

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states [B, T, d] of tokens.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.

        Raises:
          ValueError: more tokens than the model has positions.
        """
        with randomness(key):
            hidden, n_prompt = self.embeddings(input_ids, self.prompt)
            length = hidden.shape[1] + self.embeddings.first_position
            room = self.config.max_position_embeddings
            if length > room:
                raise ValueError(
                    f"{length} tokens exceed the model's {room} positions; truncate"
                )
            mask = None
            if attention_mask is not None:
                real = seen_by_all(attention_mask.astype(bool), n_prompt)
                mask = real[:, None, None, :]
            return self.transformer(hidden, mask)[:, n_prompt:]


class DistilBertForSequenceClassification(nnx.Module):
    """DistilBERT with a classification head: logits f32[B, num_labels].

    The head reads the first token: relu(pre_classifier(x)) and a linear classifier.

    Args:
      config: sizes.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of the encoder's weights and activations; the head stays f32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.DistilBertConfig(
      ...     vocab_size=30, dim=8, n_layers=2, n_heads=2, hidden_dim=16
      ... )
      >>> def run(inputs):
      ...     model = models.DistilBertForSequenceClassification(config, 2, nnx.Rngs(0))
      ...     return model(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("transformer.layer",),
        prefixes=("", "distilbert."),
        new=("pre_classifier", "classifier"),
        ignored=_OTHER_HEADS,
    )

    def __init__(
        self,
        config: DistilBertConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.distilbert = DistilBertModel(config, rngs, dtype)
        self.pre_classifier = classifier(config.dim, config.dim, rngs)
        self.classifier = classifier(config.dim, num_labels, rngs)

    def features(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What the head sees, [B, d].

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        return self.distilbert(input_ids, attention_mask, key)[:, 0]

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32[B, num_labels]; arguments as those of `features`."""
        features = self.features(input_ids, attention_mask, key).astype(jnp.float32)
        hidden = jax.nn.relu(self.pre_classifier(features))
        return self.classifier(hidden)
