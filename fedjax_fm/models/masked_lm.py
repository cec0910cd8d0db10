"""Masked-language pre-training of BERT from random weights, whole or cut in two places.

Names of the head's modules follow Hugging Face's `BertForMaskedLM`.

References:
  Devlin et al., 2018, arXiv 1810.04805, section 3.1 (what is masked) and appendix A.2.
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
    """How many tokens of a row are to be predicted: round(rate n) of n real ones.

    At least one, where there is one.

    Args:
      attention_mask: [..., T], 1 for real tokens.
      rate: share of the real tokens.

    Returns:
      i32[...].

    Example:
      >>> n_targets(jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]]), rate=0.5).tolist()
      [2, 1]
    """
    n = jnp.sum(attention_mask != 0, axis=-1)
    wanted = jnp.round(rate * n).astype(jnp.int32)
    return jnp.clip(wanted, 1, n)


def mask_tokens(
    input_ids: jax.Array,
    attention_mask: jax.Array,
    key: jax.Array,
    *,
    mask_id: int,
    words: tuple[int, int],
    rate: float = 0.15,
) -> tuple[jax.Array, jax.Array]:
    """Masks words at random, as BERT is pre-trained.

    Of the chosen tokens 80 % become [MASK], 10 % a random word, 10 % stay.

    Args:
      input_ids: i32[B, T].
      attention_mask: [B, T], 1 for real tokens.
      key: of `jax.random`.
      mask_id: the id of [MASK].
      words: (first, end) of the ids that random words are drawn from; tokens outside
        (special ones) are never chosen.
      rate: `n_targets` of a row's words are chosen. Their number is fixed; every set of
        that size is equally likely.

    Returns:
      (what the model reads, labels), i32[B, T] both; labels are -100 where nothing is
      to be predicted.

    References:
      Devlin et al., 2018, arXiv 1810.04805, section 3.1.

    Example:
      >>> ids, key = jnp.array([[1, 5, 6, 7, 2]]), jax.random.key(0)
      >>> read, labels = mask_tokens(
      ...     ids, jnp.ones_like(ids), key, mask_id=3, words=(4, 10), rate=0.34
      ... )
      >>> int((labels != -100).sum())
      1
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
    new = jnp.where(share < 0.9, random_words, input_ids)
    new = jnp.where(share < 0.8, mask_id, new)
    return jnp.where(chosen, new, input_ids), jnp.where(chosen, input_ids, IGNORED)


class BertEnds(nnx.Module):
    """The parts of a BERT around its encoder: embeddings and the masked-language head.

    logits = LayerNorm(gelu(dense(hidden))) table^T + bias, and the table is that of
    words.

    Args:
      config: sizes.
      rngs: draws the initial weights.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.act = config.hidden_act
        self.embeddings = BertEmbeddings(config, rngs)
        # All of the original's scale, or positions would drown words.
        for name in ("word", "position", "token_type"):
            table = getattr(self.embeddings, f"{name}_embeddings").embedding
            drawn = jax.random.normal(rngs.params(), table.shape)
            table.set_value(0.02 * drawn)
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, rngs=rngs)
        self.LayerNorm = layer_norm(
            config.hidden_size, config.layer_norm_eps, jnp.float32, rngs
        )
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden states.

        Args:
          hidden: [..., d].
        """
        table = self.embeddings.word_embeddings.embedding[...]
        hidden = ACTIVATIONS[self.act](self.dense(hidden))
        return self.LayerNorm(hidden) @ table.T + self.bias[...]


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

    The client has the embeddings and the head, whose output table is the table of
    words; the server has the encoder. Batches are {"input_ids", "attention_mask"}
    i32[B, length]. Losses are means over a row's chosen tokens, weighted by how many
    they are; the metric `accuracy` likewise.

    Args:
      config: sizes.
      length: tokens of a row.
      mask_id: the id of [MASK].
      words: (first, end) of the ids of words, see `mask_tokens`.
      seed: of the random initial values.
      rate: share of a row's words that are to be predicted.

    Returns:
      (split, delta), delta {"client", "server"} of random initial values.

    Raises:
      ValueError: a length that the model has no positions for, or a configuration with
        `is_decoder`: a causal encoder predicts nothing from what comes behind.

    Example:
      >>> config = BertConfig(
      ...     vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16,
      ... )
      >>> def delta():
      ...     return bert_split(config, length=5, mask_id=3, words=(4, 30))[1]
      >>> sorted(jax.eval_shape(delta))  # traced, not computed
      ['client', 'server']
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
        embedded, _ = nnx.merge(ends, client).embeddings(ids, None)
        return embedded, batch["attention_mask"] != 0

    def body(server, activations, context):
        model = nnx.merge(encoder, server)
        return model(activations, context[:, None, None, :])

    def head(client, features, batch, key):
        _, labels = masked(batch, key)
        # Logits of the targets alone, which come first.
        order = jnp.argsort(labels == IGNORED, axis=-1, stable=True)
        at = order[:, :most]
        labels = jnp.take_along_axis(labels, at, axis=-1)
        features = jnp.take_along_axis(features, at[..., None], axis=1)
        logits = nnx.merge(ends, client).logits(features)
        return _mean_losses(logits, labels)

    def weight(batch):
        ids = batch["input_ids"]
        real = (batch["attention_mask"] != 0) & (ids >= words[0]) & (ids < words[1])
        return n_targets(real, rate).astype(jnp.float32)

    sent = (
        jax.ShapeDtypeStruct((length, config.hidden_size), jnp.float32),
        jax.ShapeDtypeStruct((length,), jnp.bool_),
    )
    split = Split(embed=embed, body=body, head=head, sent=sent, weight=weight)
    return split, {"client": client, "server": server}


def _mean_losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict]:
    """Each row's mean loss f32[B] and accuracy, of logits [B, n, V], labels [B, n]."""
    counts = (labels != IGNORED).astype(jnp.float32)
    wanted = jnp.maximum(labels, 0)[..., None]
    chosen = jnp.take_along_axis(logits, wanted, axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)

    def mean(values):
        n = jnp.maximum(counts.sum(-1), 1)
        return jnp.sum(values * counts, axis=-1) / n

    return mean(losses), {"accuracy": mean(right)}
