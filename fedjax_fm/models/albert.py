"""ALBERT: one layer run L times over factorised embeddings.

Module names follow Hugging Face's `AlbertModel`. The layer belongs to no stack: its
parameters have no layer axis.

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
from fedjax_fm.models.virtual_tokens import seen_by_all
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class AlbertConfig(BertConfig):
    """BERT's fields with the defaults of albert-base-v2, and the width of the embeddings."""

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
                f"expected one group of one layer, got num_hidden_groups={self.num_hidden_groups}, "
                f"inner_group_num={self.inner_group_num}"
            )


class AlbertAttention(BertSelfAttention):
    """Self-attention with its residual output."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        super().__init__(config, rngs, dtype)
        self.dense = nnx.Linear(
            config.hidden_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )
        self.LayerNorm = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        return self.LayerNorm(hidden + self.dense(super().__call__(hidden, mask)))


class AlbertLayer(nnx.Module):
    """The layer, post-norm."""

    def __init__(self, config: AlbertConfig, rngs: nnx.Rngs, dtype: Any):
        d, wide = config.hidden_size, config.intermediate_size
        self.act = config.hidden_act
        self.attention = AlbertAttention(config, rngs, dtype)
        self.ffn = nnx.Linear(d, wide, param_dtype=dtype, rngs=rngs)
        self.ffn_output = nnx.Linear(wide, d, param_dtype=dtype, rngs=rngs)
        self.full_layer_layer_norm = layer_norm(d, config.layer_norm_eps, dtype, rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        attended = self.attention(hidden, mask)
        return self.full_layer_layer_norm(
            self.ffn_output(ACTIVATIONS[self.act](self.ffn(attended))) + attended
        )


_KEPT = (
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable
)  # for the backward pass, as in `run_stacked`


class AlbertEncoder(nnx.Module):
    """The embeddings widened, and the layer run num_hidden_layers times."""

    def __init__(self, config: AlbertConfig, rngs: nnx.Rngs, dtype: Any):
        self.n_layers = config.num_hidden_layers
        self.embedding_hidden_mapping_in = nnx.Linear(
            config.embedding_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )
        self.albert_layers = AlbertLayer(config, rngs, dtype)

    def __call__(self, embedded: jax.Array, mask: jax.Array | None) -> jax.Array:
        # Merged inside the body for the reason given in `stacked.scan_layers`.
        graphdef, state = nnx.split(self.albert_layers)

        def body(hidden: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            with in_layer(number):

                def apply(state, hidden):
                    return nnx.merge(graphdef, state)(hidden, mask)

                return jax.checkpoint(apply, policy=_KEPT, prevent_cse=False)(
                    state, hidden
                ), None

        return jax.lax.scan(
            body, self.embedding_hidden_mapping_in(embedded), jnp.arange(self.n_layers)
        )[0]


_RENAMED = (("encoder.albert_layers", "encoder.albert_layer_groups.0.albert_layers.0"),)
_OTHER_HEADS = (r"position_ids$", r"^(predictions|sop_classifier|qa_outputs)\.")


class AlbertModel(nnx.Module):
    """The encoder: `model(input_ids i32[B, T], attention_mask [B, T]) -> hidden states
    [B, T, d]`.
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
        """The embedding that a prompt is made of."""
        return self.embeddings.word_embeddings

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        with randomness(key):
            embedded, n_prompt = self.embeddings(input_ids, token_type_ids, self.prompt)
            length, room = (
                embedded.shape[1] + self.embeddings.first_position,
                self.config.max_position_embeddings,
            )
            if length > room:
                raise ValueError(
                    f"{length} tokens exceed the model's {room} positions; truncate"
                )
            mask = None
            if attention_mask is not None:
                mask = seen_by_all(attention_mask.astype(bool), n_prompt)[
                    :, None, None, :
                ]
            return self.encoder(embedded, mask)[:, n_prompt:]


class AlbertForSequenceClassification(nnx.Module):
    """tanh(pooler(first token)) and a linear classifier: logits f32[B, num_labels]."""

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
        """What the classifier sees, [B, d]."""
        return jnp.tanh(
            self.albert.pooler(
                self.albert(input_ids, attention_mask, token_type_ids, key)[:, 0]
            )
        )

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        features = self.features(input_ids, attention_mask, token_type_ids, key)
        return self.classifier(features.astype(jnp.float32))
