"""RoBERTa: BERT's encoder with other positions, and a head with a hidden layer.

Positions are numbered behind the padding index. Module names follow Hugging Face's
`RobertaModel` without the layer number.

References:
  Liu et al., 2019, arXiv 1907.11692.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.bert import BertConfig, BertEmbeddings, BertModel
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """A RoBERTa's sizes: the fields of `BertConfig` with RoBERTa's defaults.

    Two of the positions are never a token's.

    Attributes:
      vocab_size, hidden_size, num_hidden_layers, num_attention_heads: of `BertConfig`.
      intermediate_size, max_position_embeddings, type_vocab_size: of `BertConfig`.
      layer_norm_eps, hidden_act, is_decoder, add_cross_attention: of `BertConfig`.
      pad_token_id: the padding's id; a text's first token has position pad_token_id +
        1.

    Raises:
      ValueError: a field that `BertConfig` refuses.
    """

    vocab_size: int = 50265
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1


class RobertaEmbeddings(BertEmbeddings):
    """BERT's embeddings with positions that count real tokens.

    Token i has row pad_token_id + 1 + i of the position table; padding has row
    pad_token_id. Padding is told by its id, as in transformers, and by the attention
    mask where there is one: text that was padded with another id has the right
    positions all the same.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        super().__init__(config, rngs, dtype)
        self.pad_token_id = config.pad_token_id
        self.first_row = config.pad_token_id + 1

    def position_ids(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """The number of each real token in its text, i32[B, T]; -1 for padding.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: the padding's id alone tells.
        """
        real = input_ids != self.pad_token_id
        if attention_mask is not None:
            real = real & attention_mask.astype(bool)
        real = real.astype(jnp.int32)
        return jnp.cumsum(real, axis=-1) * real - 1


class RobertaModel(BertModel):
    """RoBERTa's encoder, without a pooler: tokens in, hidden states out.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations, f32 by default.

    References:
      Liu et al., 2019, arXiv 1907.11692.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.RobertaConfig(
      ...     vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16,
      ... )
      >>> def run(inputs):
      ...     return models.RobertaModel(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 8)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "roberta."),
        ignored=(
            r"position_ids$",
            r"^(roberta\.)?pooler\.",
            r"^(lm_head|classifier|qa_outputs)\.",
        ),
    )

    def __init__(self, config: RobertaConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        super().__init__(config, rngs, dtype)
        self.embeddings = RobertaEmbeddings(config, rngs, dtype)
        del self.pooler


class RobertaClassificationHead(nnx.Module):
    """A classification head in f32: out_proj(tanh(dense(x))).

    Args:
      width: d, inputs.
      num_labels: outputs.
      rngs: draws the initial weights.
    """

    def __init__(self, width: int, num_labels: int, rngs: nnx.Rngs):
        self.dense = classifier(width, width, rngs)
        self.out_proj = classifier(width, num_labels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits f32[B, num_labels] of x [B, d]."""
        hidden = jnp.tanh(self.dense(x.astype(jnp.float32)))
        return self.out_proj(hidden)


class RobertaForSequenceClassification(nnx.Module):
    """RoBERTa with a classification head on the first token: logits f32[B, num_labels].

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
      >>> config = models.RobertaConfig(
      ...     vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16,
      ... )
      >>> def run(inputs):
      ...     model = models.RobertaForSequenceClassification(config, 2, nnx.Rngs(0))
      ...     return model(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "roberta."),
        new=("classifier",),
        ignored=(
            r"position_ids$",
            r"^(roberta\.)?pooler\.",
            r"^(lm_head|qa_outputs)\.",
        ),
    )

    def __init__(
        self,
        config: RobertaConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.roberta = RobertaModel(config, rngs, dtype)
        self.classifier = RobertaClassificationHead(
            config.hidden_size, num_labels, rngs
        )

    def features(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What the head sees, [B, d].

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all but the padding's id are.
          token_type_ids: i32[B, T], the segment of each token; None: all 0.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        return self.roberta(input_ids, attention_mask, token_type_ids, key)[:, 0]

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32[B, num_labels]; arguments as those of `features`."""
        features = self.features(input_ids, attention_mask, token_type_ids, key)
        return self.classifier(features)
