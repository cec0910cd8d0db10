"""Language models on embeddings instead of tokens, for attacks that search among them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.types import Tree


class Given(nnx.Module):
    """In the place of a table of tokens: returns what it was given, whatever is read.

    Args:
      table: which it stands for, read by heads that are tied to it.
      embedded: f32[T, d], of the one text.
    """

    def __init__(self, table: nnx.Embed, embedded: jax.Array):
        self.table = table
        self.embedded = nnx.data(embedded)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """The embeddings [B, T, d], the same for every row.

        Args:
          input_ids: i32[B, T].
        """
        shape = (*input_ids.shape, self.embedded.shape[-1])
        return jnp.broadcast_to(self.embedded, shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)


def with_embedded(model: nnx.Module, embedded: jax.Array) -> nnx.Module:
    """The model, which reads these embeddings in the place of its tokens.

    Args:
      model: of `fedjax_fm.models`, one with a table of tokens; it is changed.
      embedded: f32[T, d], as the table has them.

    Returns:
      The same model.

    Raises:
      TypeError: a model without a table of tokens.
    """
    owner = _owner_of_table(model)
    if owner is None:
        raise TypeError(
            f"expected a model that reads tokens, got a {type(model).__name__}"
        )
    part, name = owner
    setattr(part, name, Given(getattr(part, name), embedded))
    return model


def token_table(model: nnx.Module) -> jax.Array:
    """The embeddings of all tokens.

    Args:
      model: of `fedjax_fm.models`.

    Returns:
      f32[V, d].

    Raises:
      TypeError: a model without a table of tokens.

    Example:
      >>> from fedjax_fm import models
      >>> config = models.GPT2Config(
      ...     vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> token_table(models.GPT2LMHeadModel(config, nnx.Rngs(0))).shape
      (30, 8)
    """
    owner = _owner_of_table(model)
    if owner is None:
        raise TypeError(
            f"expected a model that reads tokens, got a {type(model).__name__}"
        )
    part, name = owner
    return getattr(part, name).embedding[...]


def _owner_of_table(model: nnx.Module) -> tuple[Any, str] | None:
    """(the module that holds the table of tokens, its name there)."""
    parts: list[Any] = [part for _, part in nnx.iter_modules(model)]
    tables = {id(part.vocabulary) for part in parts if _has_vocabulary(part)}
    for part in parts:
        for name, value in vars(part).items():
            if id(value) in tables:
                return part, name
    return None


def _has_vocabulary(part: Any) -> bool:
    return isinstance(getattr(type(part), "vocabulary", None), property)


def soft_loss(
    adapted: Any, delta: Tree, backbone: Tree, embedded: jax.Array, sharpness: float
) -> jax.Array:
    """The loss of a causal language model on a text of embeddings.

    What comes next is soft, too: each token of the vocabulary by how near its embedding
    lies, softmax of `sharpness` times the cosine. For the embeddings of real tokens and
    large sharpness this is the loss of `tasks.language_modeling` on that text.

    Args:
      adapted: from `peft.apply`.
      delta: its trainable tree.
      backbone: its frozen tree.
      embedded: f32[T, d], T >= 2.
      sharpness: of what comes next.

    Returns:
      f32[], the mean over T - 1 tokens.
    """
    checks.real("sharpness", sharpness, above=0)
    model = adapted.model(delta, backbone)
    table = jax.lax.stop_gradient(token_table(model))
    targets = jax.nn.softmax(sharpness * _cosines(embedded[1:], table), axis=-1)
    return _hidden_loss(with_embedded(model, embedded), embedded, targets)


def hard_loss(
    adapted: Any, delta: Tree, backbone: Tree, embedded: jax.Array, labels: jax.Array
) -> jax.Array:
    """As `soft_loss`, of an attacker who knows what comes next.

    Args:
      adapted: from `peft.apply`.
      delta: its trainable tree.
      backbone: its frozen tree.
      embedded: f32[T, d], T >= 2.
      labels: i32[T], unshifted; -100 does not count.

    Returns:
      f32[], the mean over the tokens that count.
    """
    model = adapted.model(delta, backbone)
    n_tokens = token_table(model).shape[0]
    counts = (labels[1:] != IGNORED)[:, None]
    known = jax.nn.one_hot(labels[1:], n_tokens)
    targets = jnp.where(counts, known, 0.0)
    return _hidden_loss(with_embedded(model, embedded), embedded, targets)


def _hidden_loss(model: Any, embedded: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of targets f32[T - 1, V], the mean over their mass."""
    ids = jnp.zeros((1, embedded.shape[0]), jnp.int32)
    hidden = model.hidden(ids, jnp.ones_like(ids))[0, :-1]
    log_p = jax.nn.log_softmax(model.head(hidden).astype(jnp.float32), axis=-1)
    return -jnp.sum(targets * log_p) / jnp.maximum(jnp.sum(targets), 1e-9)


def _cosines(x: jax.Array, table: jax.Array) -> jax.Array:
    """f32[T, V]."""

    def unit(rows: jax.Array) -> jax.Array:
        squared = jnp.sum(rows.astype(jnp.float32) ** 2, axis=-1, keepdims=True)
        return rows * jax.lax.rsqrt(squared + 1e-12)

    return unit(x) @ unit(table).T
