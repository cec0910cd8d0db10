"""Language modelling: the loss of every token that counts has the same weight."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.language_modeling import IGNORED, next_token_losses, token_losses
from fedjax_fm.models.randomness import randomness
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.types import Task, Tree

COLUMNS = ("input_ids", "attention_mask", "labels")


def language_modeling(adapted: Any, *, chunk: int = 128) -> Task:
    """Mean of -log p(token) over the tokens of a row, weighted by their number.

        loss_i = 1 / n_i sum_t -log p(token_t | tokens before t),   weight_i = n_i

    The sum is over the n_i tokens that count. Batches have the columns `input_ids`,
    `attention_mask` and `labels`, all i32[B, T]. Labels are unshifted, as in Hugging
    Face, and -100 does not count. Tokens that would be predicted from padding or from
    another text of a packed row do not count either. For an encoder-decoder (T5),
    `labels` i32[B, U] are the targets of the decoder; Whisper has `input_features` in
    the place of tokens and their mask.

    Args:
      adapted: from `peft.apply`; its model has `hidden` and `head`, as all language
        models of `fedjax_fm.models` have.
      chunk: positions whose logits are in memory at one time, see
        `models.next_token_losses`.

    Returns:
      A task that is weighted by tokens, within a batch and among clients: the
      exponential of its mean loss is the perplexity.

    Raises:
      TypeError: `adapted` is not from `peft.apply`; while a round is traced, a model
        without `hidden` and `head`.
      ValueError: while a round is traced, a missing column.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> task = language_modeling(adapted)
      >>> ids = jnp.array([[1, 2, 3, 4]])
      >>> labels = ids.at[0, 1].set(-100)  # not the second token
      >>> batch = {"input_ids": ids, "attention_mask": ids > 0, "labels": labels}
      >>> loss, _ = task.loss(adapted.delta, adapted.backbone, batch, None)
      >>> loss.shape, task.weight(batch).tolist()
      ((1,), [2.0])
    """
    check_adapted(adapted)
    checks.whole("chunk", chunk, least=1)
    own = getattr(adapted, "adapted", adapted)  # of two adapters side by side
    columns = columns_of(own.model())

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, columns, "the task")
        model = adapted.model(delta, backbone)
        check_model(model)
        with randomness(key):
            losses, counts = losses_of_tokens(model, batch, chunk)
        n_tokens = counts.sum(axis=1)
        return losses.sum(axis=1) / jnp.maximum(n_tokens, 1), {}

    def weight(batch: dict[str, jax.Array]) -> jax.Array:
        need(batch, columns, "the task")
        text = batch["attention_mask"]
        same = (text[:, 1:] != 0) & (text[:, 1:] == text[:, :-1])
        return _number(same & (batch["labels"][:, 1:] != IGNORED))

    def weight_of_targets(batch: dict[str, jax.Array]) -> jax.Array:
        need(batch, columns, "the task")
        return _number(batch["labels"] != IGNORED)

    has_decoder = hasattr(own.model(), "shift_right")
    return Task(loss, weight_of_targets if has_decoder else weight)


def columns_of(model: Any) -> tuple[str, ...]:
    """The columns that a language model is trained on, `labels` the last of them.

    Args:
      model: a language model; one that does not read text names its columns in
        `encoder_columns`.
    """
    inputs = getattr(model, "encoder_columns", COLUMNS[:-1])
    return (*inputs, COLUMNS[-1])


def hidden_of_targets(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """The decoder's hidden states [B, U, d] of an encoder-decoder, at its targets.

    Args:
      model: an encoder-decoder.
      batch: the columns of `columns_of(model)`.
    """
    *inputs, labels = (batch[name] for name in columns_of(model))
    return model.hidden(*inputs, model.shift_right(labels))


def losses_of_tokens(
    model: Any, batch: dict[str, jax.Array], chunk: int = 128
) -> tuple[jax.Array, jax.Array]:
    """The loss of every token of a batch, before any mean.

    Args:
      model: a language model, a decoder or an encoder-decoder.
      batch: the columns of `language_modeling`.
      chunk: positions whose logits are in memory at one time.

    Returns:
      (-log p(token) f32[B, T], whether each counts bool[B, T]); T - 1 of a decoder.
    """
    labels = batch["labels"]
    if not hasattr(model, "shift_right"):
        ids, mask, _ = (batch[name] for name in COLUMNS)
        return next_token_losses(model, ids, mask, labels, chunk=chunk)
    hidden = hidden_of_targets(model, batch)
    return token_losses(hidden, model.head, labels, chunk), labels != IGNORED


def check_model(model: Any) -> None:
    """Raises TypeError unless the model is a language model.

    Args:
      model: a module.
    """
    if not (hasattr(model, "hidden") and hasattr(model, "head")):
        raise TypeError(
            "expected a language model with hidden(input_ids, attention_mask) "
            f"and head(hidden), got {type(model).__name__}; "
            "models.from_pretrained(...) without num_labels gives one"
        )


def _number(mask: jax.Array) -> jax.Array:
    """bool[B, T] -> f32[B], how many are true."""
    return mask.sum(axis=1).astype(jnp.float32)
