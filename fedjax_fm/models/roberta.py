"""RoBERTa: BERT's encoder with positions numbered behind the padding index, and a head
with a hidden layer.

Module names follow Hugging Face's `RobertaModel` without the layer number.

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
    """BERT's fields with RoBERTa's defaults; two of the positions are never a token's."""

    vocab_size: int = 50265
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1


class RobertaEmbeddings(BertEmbeddings):
    """Token i has row pad_token_id + 1 + i of the position table; padding has row pad_token_id.

    Padding is told by its id, as in transformers, and by the attention mask where there
    is one: text that was padded with another id has the right positions all the same.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        super().__init__(config, rngs, dtype)
        self.pad_token_id = config.pad_token_id
        self.first_row = config.pad_token_id + 1

    def position_ids(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        real = input_ids != self.pad_token_id
        if attention_mask is not None:
            real = real & attention_mask.astype(bool)
        real = real.astype(jnp.int32)
        return jnp.cumsum(real, axis=-1) * real - 1


class RobertaModel(BertModel):
    """The encoder without a pooler: `model(input_ids i32[B, T], attention_mask [B, T])
    -> hidden states [B, T, d]`.
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
    """out_proj(tanh(dense(x))) in f32."""

    def __init__(self, width: int, num_labels: int, rngs: nnx.Rngs):
        self.dense = classifier(width, width, rngs)
        self.out_proj = classifier(width, num_labels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out_proj(jnp.tanh(self.dense(x.astype(jnp.float32))))


class RobertaForSequenceClassification(nnx.Module):
    """Encoder and head on the first token: logits f32[B, num_labels]."""

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
        """What the head sees, [B, d]."""
        return self.roberta(input_ids, attention_mask, token_type_ids, key)[:, 0]

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        return self.classifier(
            self.features(input_ids, attention_mask, token_type_ids, key)
        )
