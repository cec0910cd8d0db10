"""Language modelling: every answer token counts alike."""

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
    """Mean -log p(token) over the tokens of a row that count, weighted by their number.

    The batch has `input_ids`, `attention_mask` and `labels`, all i32[B, T], the labels
    unshifted as in Hugging Face: -100 does not count. So is a token that is predicted
    from padding or from another text of a packed row. An encoder-decoder (T5) is given
    `labels` [B, U] as its decoder's targets.

    Args:
      adapted: from `peft.apply`; its model has `hidden` and `head`, as all language
        models of `models`.
      chunk: positions whose logits exist at one time, see `models.next_token_losses`.

    Returns:
      A task that is token-weighted, in a batch as among clients: exp of its mean loss
      is the perplexity.

    Raises:
      TypeError: `adapted` is no model, or one without `hidden` and `head`.
      ValueError: while a round is traced, a column that is not there.

    Example:
      `task = tasks.language_modeling(peft.apply(model, peft.lora(8, targets=["q_proj"])))`
    """
    check_adapted(adapted)
    checks.whole("chunk", chunk, least=1)

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, COLUMNS, "the task")
        model = adapted.model(delta, backbone)
        _check_model(model)
        with randomness(key):
            losses, counts = _losses(model, batch, chunk)
        return losses.sum(axis=1) / jnp.maximum(counts.sum(axis=1), 1), {}

    def weight(batch: dict[str, jax.Array]) -> jax.Array:
        need(batch, COLUMNS, "the task")
        text = batch["attention_mask"]
        same = (text[:, 1:] != 0) & (text[:, 1:] == text[:, :-1])
        return _number(same & (batch["labels"][:, 1:] != IGNORED))

    def weight_of_targets(batch: dict[str, jax.Array]) -> jax.Array:
        need(batch, COLUMNS, "the task")
        return _number(batch["labels"] != IGNORED)

    return Task(loss, weight_of_targets if _has_decoder(adapted) else weight)


def _losses(
    model: Any, batch: dict[str, jax.Array], chunk: int
) -> tuple[jax.Array, jax.Array]:
    ids, mask, labels = (batch[name] for name in COLUMNS)
    if not hasattr(model, "shift_right"):
        return next_token_losses(model, ids, mask, labels, chunk)
    hidden = model.hidden(ids, mask, model.shift_right(labels))
    return token_losses(hidden, model.head, labels, chunk), labels != IGNORED


def _has_decoder(adapted: Any) -> bool:
    """Whether the model reads one text and writes another."""
    own = getattr(adapted, "adapted", adapted)  # of two adapters side by side
    return hasattr(own.model(), "shift_right")


def _check_model(model: Any) -> None:
    if not (hasattr(model, "hidden") and hasattr(model, "head")):
        raise TypeError(
            "expected a language model with hidden(input_ids, attention_mask) "
            f"and head(hidden), got {type(model).__name__}; "
            "models.from_pretrained(...) without num_labels gives one"
        )


def _number(mask: jax.Array) -> jax.Array:
    return mask.sum(axis=1).astype(jnp.float32)
