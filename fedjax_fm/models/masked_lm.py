"""Masked-language pre-training of BERT from random weights, whole or cut in two places.

Devlin et al., 2018, arXiv 1810.04805, section 3.1 (what is masked) and appendix A.2;
names of the head's modules follow Hugging Face's `BertForMaskedLM`.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS
from fedjax_fm.models.bert import BertConfig, BertEmbeddings, BertEncoder, layer_norm
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.split import Split
from fedjax_fm.types import Tree


def n_targets(attention_mask: jax.Array, rate: float = 0.15) -> jax.Array:
    """i32[...]: how many tokens of rows [..., T] are to be predicted.

    Round(rate n) of n real ones, at least one.
    """
    n = jnp.sum(attention_mask != 0, axis=-1)
    return jnp.clip(jnp.round(rate * n).astype(jnp.int32), 1, n)


def mask_tokens(
    input_ids: jax.Array,
    attention_mask: jax.Array,
    key: jax.Array,
    *,
    mask_id: int,
    words: tuple[int, int],
    rate: float = 0.15,
) -> tuple[jax.Array, jax.Array]:
    """(what the model reads, labels), i32[B, T].

    Of the chosen tokens 80 % become [MASK], 10 % a random word, 10 % stay.

    Args:
      input_ids, attention_mask: [B, T].
      mask_id: of [MASK].
      words: (first, end) of the ids that random words are drawn from; tokens outside
        (special ones) are never chosen.
      rate: `n_targets` of a row's words are chosen, every set of them equally likely:
        their number is no chance.

    Labels are -100 where nothing is to be predicted.
    """
    which, how, what = jax.random.split(key, 3)
    real = (attention_mask != 0) & (input_ids >= words[0]) & (input_ids < words[1])
    order = jnp.where(real, jax.random.uniform(which, input_ids.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)
    chosen = real & (rank < n_targets(real, rate)[:, None])
    share = jax.random.uniform(how, input_ids.shape)
    random_words = jax.random.randint(
        what, input_ids.shape, *words, dtype=input_ids.dtype
    )
    new = jnp.where(
        share < 0.8, mask_id, jnp.where(share < 0.9, random_words, input_ids)
    )
    return jnp.where(chosen, new, input_ids), jnp.where(chosen, input_ids, IGNORED)


class BertEnds(nnx.Module):
    """What surrounds the encoder: embeddings, and a head whose output table is the table of words.

    logits = LayerNorm(gelu(dense(hidden))) table^T + bias
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.act = config.hidden_act
        self.embeddings = BertEmbeddings(config, rngs)
        for name in (
            "word",
            "position",
            "token_type",
        ):  # all of the original's scale, or positions would drown words
            table = getattr(self.embeddings, f"{name}_embeddings").embedding
            table.set_value(0.02 * jax.random.normal(rngs.params(), table.shape))
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, rngs=rngs)
        self.LayerNorm = layer_norm(
            config.hidden_size, config.layer_norm_eps, jnp.float32, rngs
        )
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., d] -> f32[..., V]."""
        table = self.embeddings.word_embeddings.embedding[...]
        return (
            self.LayerNorm(ACTIVATIONS[self.act](self.dense(hidden))) @ table.T
            + self.bias[...]
        )


def bert_split(
    config: BertConfig,
    length: int,
    *,
    mask_id: int,
    words: tuple[int, int],
    seed: int = 0,
    rate: float = 0.15,
) -> tuple[Split, dict[str, Tree]]:
    """BERT for masked-language modelling, cut before and behind its encoder.

    (split, random initial delta).

    The client has the embeddings and the head, whose output table is the table of
    words; the server has the encoder. Batches are {"input_ids", "attention_mask"}
    i32[B, length]. Losses are means over a row's chosen tokens, weighted by how many
    they are; the metric `accuracy` likewise.

    Args: as for `mask_tokens`; length: tokens a row.

    Raises:
      ValueError: a length that the model has no positions for, or a configuration with
        `is_decoder`: a causal encoder predicts nothing from what comes behind.
    """
    if config.is_decoder:
        raise ValueError(
            "expected an encoder for masked-language modelling, got is_decoder=True"
        )
    if not 1 <= length <= config.max_position_embeddings:
        raise ValueError(
            f"expected 1 <= length <= {config.max_position_embeddings} positions, "
            f"got length={length}"
        )
    rngs = nnx.Rngs(seed)
    ends, client = nnx.split(BertEnds(config, rngs))
    encoder, server = nnx.split(BertEncoder(config, rngs))
    most = max(1, math.ceil(rate * length))  # tokens that a row is to predict

    def masked(batch, key):
        return mask_tokens(
            batch["input_ids"],
            batch["attention_mask"],
            key,
            mask_id=mask_id,
            words=words,
            rate=rate,
        )

    def embed(client, batch, key):
        ids, _ = masked(batch, key)
        return nnx.merge(ends, client).embeddings(ids, None)[0], batch[
            "attention_mask"
        ] != 0

    def body(server, activations, context):
        return nnx.merge(encoder, server)(activations, context[:, None, None, :])

    def head(client, features, batch, key):
        _, labels = masked(batch, key)
        at = jnp.argsort(labels == IGNORED, axis=-1, stable=True)[
            :, :most
        ]  # logits of these alone
        labels = jnp.take_along_axis(labels, at, axis=-1)
        logits = nnx.merge(ends, client).logits(
            jnp.take_along_axis(features, at[..., None], axis=1)
        )
        counts = (labels != IGNORED).astype(jnp.float32)
        wanted = jnp.maximum(labels, 0)[..., None]
        losses = (
            jax.nn.logsumexp(logits, axis=-1)
            - jnp.take_along_axis(logits, wanted, axis=-1)[..., 0]
        )
        right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)

        def mean(values):
            return jnp.sum(values * counts, axis=-1) / jnp.maximum(counts.sum(-1), 1)

        return mean(losses), {"accuracy": mean(right)}

    def weight(batch):
        ids = batch["input_ids"]
        real = (batch["attention_mask"] != 0) & (ids >= words[0]) & (ids < words[1])
        return n_targets(real, rate).astype(jnp.float32)

    sent = (
        jax.ShapeDtypeStruct((length, config.hidden_size), jnp.float32),
        jax.ShapeDtypeStruct((length,), jnp.bool_),
    )
    return Split(embed=embed, body=body, head=head, sent=sent, weight=weight), {
        "client": client,
        "server": server,
    }
