"""Token classification: every labelled token has the same weight."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.tasks.classification import cross_entropy
from fedjax_fm.tasks.columns import call_model, check_adapted, check_names, need
from fedjax_fm.types import Task, Tree


def token_classification(
    adapted: Any, *, labels: str = "labels", inputs: Sequence[str] | None = None
) -> Task:
    """Mean of -log softmax(logits_t)[label_t] over the labelled tokens of a row.

        loss_i = 1 / n_i sum_t -log softmax(logits_it)[label_it],   weight_i = n_i

    The sum is over the n_i tokens whose label is not -100, as in Hugging Face.

    Args:
      adapted: from `peft.apply`; its model returns logits f32[B, T, K], such as
        `models.BertForTokenClassification`.
      labels: the column of class numbers, i32[B, T] in 0..K-1, or -100 where a token
        does not count; `models.tokenize_words` makes it.
      inputs: columns that the model is called with, by name; default: all but the
        labels.

    Returns:
      A task with the loss and the metric `accuracy` of every example, its share of
      tokens that are right. It is weighted by labelled tokens, within a batch and among
      clients. A row without any has loss, accuracy and weight 0. Another label outside
      of the classes makes the loss NaN, which stops a run with the client's number.

    Raises:
      TypeError: `adapted` is not from `peft.apply`; while a round is traced, labels
        that are not whole numbers.
      ValueError: while a round is traced, columns or logits that do not fit the labels;
        the message names both.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import peft
      >>> adapted = peft.apply(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), peft.full())
      >>> task = token_classification(adapted)
      >>> batch = {"x": jnp.ones((1, 2, 4)), "labels": jnp.array([[2, -100]])}
      >>> loss, metrics = task.loss(adapted.delta, adapted.backbone, batch, None)
      >>> loss.shape, sorted(metrics), task.weight(batch).tolist()
      ((1,), ['accuracy'], [1.0])
    """
    check_adapted(adapted)
    checks.text("labels", labels)
    check_names("inputs", inputs)

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, (labels,), "the task")
        model = adapted.model(delta, backbone)
        logits = call_model(model, batch, (labels,), inputs=inputs, key=key)
        wanted = batch[labels]
        _check_shapes(logits, wanted, labels)
        counts = wanted != IGNORED
        losses = cross_entropy(logits, jnp.where(counts, wanted, 0))
        right = jnp.argmax(logits, axis=-1) == wanted
        return _mean(losses, counts), {"accuracy": _mean(right, counts)}

    def weight(batch: dict[str, jax.Array]) -> jax.Array:
        need(batch, (labels,), "the task")
        return (batch[labels] != IGNORED).sum(axis=1).astype(jnp.float32)

    return Task(loss, weight)


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    """The mean of [B, T] over the tokens that count, f32[B]; 0 without any."""
    total = jnp.where(counts, values, 0).sum(axis=1)
    return total / jnp.maximum(counts.sum(axis=1), 1)


def _check_shapes(logits: Any, labels: jax.Array, name: str) -> None:
    """Raises for logits and labels whose shapes or dtypes do not fit."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"expected {name!r} as whole numbers, the classes, got {labels.dtype}"
        )
    shape = getattr(logits, "shape", None)
    if shape is None:
        raise TypeError(
            f"expected logits as one array [B, T, K], got {type(logits).__name__}"
        )
    if labels.ndim != 2 or len(shape) != 3 or shape[:2] != labels.shape:
        raise ValueError(
            f"expected logits [B, T, K] and {name!r} [B, T], got {list(shape)} and "
            f"{list(labels.shape)}"
        )
