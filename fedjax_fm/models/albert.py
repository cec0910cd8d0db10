"""ALBERT: one layer run L times over factorised embeddings.

Module names follow Hugging Face's `AlbertModel`. The layer belongs to no stack: its
parameters have no layer axis.

References:
  Lan et al., 2019, arXiv 1909.11942.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS
from fedjax_fm.models.bert import (
    BertConfig,
    BertEmbeddings,
    BertSelfAttention,
    layer_norm,
)
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.randomness import in_layer, randomness
from fedjax_fm.models.remat import checkpointed
from fedjax_fm.models.virtual_tokens import seen_by_all
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class AlbertConfig(BertConfig):
    """An ALBERT's sizes: the fields of `BertConfig` and the width of the embeddings.

    The defaults are those of albert-base-v2.

    Attributes:
      vocab_size, hidden_size, num_hidden_layers, num_attention_heads: as in
        `BertConfig`.
      intermediate_size, max_position_embeddings, type_vocab_size: as in `BertConfig`.
      layer_norm_eps, hidden_act, pad_token_id, add_cross_attention: as in `BertConfig`.
      is_decoder: must be False.
      embedding_size: width of the embeddings, widened to `hidden_size` by a linear
        layer.
      num_hidden_groups, inner_group_num: must be 1: all layers share their weights.

    Raises:
      ValueError: a field that `BertConfig` refuses, a decoder, or more than one group.

    Example:
      >>> AlbertConfig(hidden_size=16, num_attention_heads=2).embedding_size
      128
    """

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_act: str = "gelu_new"
    num_hidden_groups: int = 1
    inner_group_num: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.is_decoder:
            raise ValueError(
                "is_decoder=True is not supported by ALBERT, which is an encoder"
            )
        if (self.num_hidden_groups, self.inner_group_num) != (1, 1):
            raise ValueError(
                "expected one group of one layer, got "
                f"num_hidden_groups={self.num_hidden_groups}, "
                f"inner_group_num={self.inner_group_num}"
            )


class AlbertAttention(BertSelfAttention):
    """Self-attention with its residual output: LayerNorm(x + dense(attention(x))).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        super().__init__(config, rngs, dtype)
        self.dense = nnx.Linear(
            config.hidden_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )
        self.LayerNorm = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        attended = super().__call__(hidden, mask)
        return self.LayerNorm(hidden + self.dense(attended))


class AlbertLayer(nnx.Module):
    """The layer that is run again and again, post-norm.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: AlbertConfig, rngs: nnx.Rngs, dtype: Any):
        d, wide = config.hidden_size, config.intermediate_size
        self.act = config.hidden_act
        self.attention = AlbertAttention(config, rngs, dtype)
        self.ffn = nnx.Linear(d, wide, param_dtype=dtype, rngs=rngs)
        self.ffn_output = nnx.Linear(wide, d, param_dtype=dtype, rngs=rngs)
        self.full_layer_layer_norm = layer_norm(d, config.layer_norm_eps, dtype, rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        attended = self.attention(hidden, mask)
        wide = ACTIVATIONS[self.act](self.ffn(attended))
        return self.full_layer_layer_norm(self.ffn_output(wide) + attended)


# Kept for the backward pass, as in `run_stacked`.


class AlbertEncoder(nnx.Module):
    """The embeddings widened, and the layer run num_hidden_layers times.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: AlbertConfig, rngs: nnx.Rngs, dtype: Any):
        self.n_layers = config.num_hidden_layers
        self.embedding_hidden_mapping_in = nnx.Linear(
            config.embedding_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )
        self.albert_layers = AlbertLayer(config, rngs, dtype)

    def __call__(self, embedded: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from embedded [B, T, e], mask bool[B, heads or 1, T, T]."""
        # Merged inside the body for the reason given in `stacked.scan_layers`.
        graphdef, state = nnx.split(self.albert_layers)

        def body(hidden: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            with in_layer(number):

                def apply(state, hidden):
                    return nnx.merge(graphdef, state)(hidden, mask)

                return checkpointed(apply)(state, hidden), None

        hidden = self.embedding_hidden_mapping_in(embedded)
        hidden, _ = jax.lax.scan(body, hidden, jnp.arange(self.n_layers))
        return hidden


_RENAMED = (("encoder.albert_layers", "encoder.albert_layer_groups.0.albert_layers.0"),)
_OTHER_HEADS = (r"position_ids$", r"^(predictions|sop_classifier|qa_outputs)\.")


class AlbertModel(nnx.Module):
    """ALBERT's encoder: tokens in, hidden states out.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations, f32 by default.

    References:
      Lan et al., 2019, arXiv 1909.11942.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.AlbertConfig(
      ...     vocab_size=30, embedding_size=4, hidden_size=8, num_hidden_layers=2,
      ...     num_attention_heads=2, intermediate_size=16,
      ... )
      >>> def run(inputs):
      ...     return models.AlbertModel(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 8)
    """

    hugging_face: ClassVar[Naming] = Naming(
        prefixes=("", "albert."),
        renamed=_RENAMED,
        new=("pooler",),
        ignored=(*_OTHER_HEADS, r"^classifier\."),
    )

    def __init__(self, config: AlbertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.embeddings = BertEmbeddings(
            config, rngs, dtype, width=config.embedding_size
        )
        self.encoder = AlbertEncoder(config, rngs, dtype)
        self.pooler = nnx.Linear(
            config.hidden_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )
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
            embedded, n_prompt = self.embeddings(input_ids, token_type_ids, self.prompt)
            length = embedded.shape[1] + self.embeddings.first_position
            room = self.config.max_position_embeddings
            if length > room:
                raise ValueError(
                    f"{length} tokens exceed the model's {room} positions; truncate"
                )
            mask = None
            if attention_mask is not None:
                real = seen_by_all(attention_mask.astype(bool), n_prompt)
                mask = real[:, None, None, :]
            return self.encoder(embedded, mask)[:, n_prompt:]


class AlbertForSequenceClassification(nnx.Module):
    """ALBERT with a pooler and a linear classifier: logits f32[B, num_labels].

    The classifier reads tanh(pooler(first token)).

    Args:
      config: sizes.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of the encoder's weights and activations; the classifier stays f32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.AlbertConfig(
      ...     vocab_size=30, embedding_size=4, hidden_size=8, num_hidden_layers=2,
      ...     num_attention_heads=2, intermediate_size=16,
      ... )
      >>> def run(inputs):
      ...     model = models.AlbertForSequenceClassification(config, 2, nnx.Rngs(0))
      ...     return model(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        prefixes=("", "albert."),
        renamed=_RENAMED,
        new=("classifier", "albert.pooler"),
        ignored=_OTHER_HEADS,
    )

    def __init__(
        self,
        config: AlbertConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.albert = AlbertModel(config, rngs, dtype)
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
        hidden = self.albert(input_ids, attention_mask, token_type_ids, key)
        return jnp.tanh(self.albert.pooler(hidden[:, 0]))

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
