"""Classification: cross-entropy and accuracy of every example."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.tasks.columns import call_model, check_adapted, check_names, need
from fedjax_fm.types import Task, Tree

Logits = Callable[[Tree, Tree, dict[str, jax.Array], Any], jax.Array]


def classification(
    adapted: Any,
    *,
    label: str = "label",
    inputs: Sequence[str] | None = None,
    predictions: bool = False,
) -> Task:
    """Cross-entropy -log softmax(logits)[label] of an adapted model.

    Args:
      adapted: from `peft.apply`; its model returns logits f32[B, K].
      label: the column of class numbers, i32[B] in 0..K-1.
      inputs: columns that the model is called with, by name; default: all but the
        label.
      predictions: whether the likeliest class of every example is a metric, too, under
        the name `predicted`, for scores such as `evaluation.matthews`.

    Returns:
      A task with the loss and the metric `accuracy` of every example. A label outside
      of the classes makes the loss NaN, which stops a run with the client's number.

    Raises:
      TypeError: `adapted` is not from `peft.apply`; while a round is traced, labels
        that are not whole numbers.
      ValueError: while a round is traced, columns that do not fit the model; the
        message names both.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import peft
      >>> adapted = peft.apply(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), peft.full())
      >>> task = classification(adapted)
      >>> batch = {"x": jnp.ones((2, 4)), "label": jnp.array([0, 2])}
      >>> loss, metrics = task.loss(adapted.delta, adapted.backbone, batch, None)
      >>> loss.shape, sorted(metrics)
      ((2,), ['accuracy'])
    """
    check_adapted(adapted)
    checks.text("label", label)
    check_names("inputs", inputs)

    def logits(
        delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any
    ) -> jax.Array:
        model = adapted.model(delta, backbone)
        return call_model(model, batch, (label,), inputs=inputs, key=key)

    return from_logits(logits, label=label, predictions=predictions)


def from_logits(fn: Logits, *, label: str = "label", predictions: bool = False) -> Task:
    """Cross-entropy of any function that returns logits.

    The function may be of plain JAX, linen, haiku or equinox.

    Args:
      fn: `(delta, backbone, batch, key) -> logits f32[B, K]`. `key` is None where the
        model is evaluated, so `deterministic=key is None` switches dropout off.
      label: the column of class numbers, i32[B] in 0..K-1.
      predictions: as of `classification`.

    Returns:
      A task as of `classification`.

    Raises:
      TypeError: `fn` is not a function; while a round is traced, labels that are not
        whole numbers.
      ValueError: while a round is traced, logits of another shape than [B, K], or a
        missing column.

    Example:
      >>> def logits(delta, backbone, batch, key):
      ...     return batch["x"] @ delta["w"]
      >>> task = from_logits(logits)
      >>> batch = {"x": jnp.eye(2), "label": jnp.array([1, 0])}
      >>> loss, metrics = task.loss({"w": jnp.zeros((2, 4))}, (), batch, None)
      >>> [round(float(one), 4) for one in loss]
      [1.3863, 1.3863]
    """
    if not callable(fn):
        raise TypeError(
            "expected fn(delta, backbone, batch, key) -> logits, got "
            f"fn={checks.shown(fn)}"
        )
    checks.text("label", label)
    checks.flag("predictions", predictions)

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, (label,), "the task")
        scores, labels = fn(delta, backbone, batch, key), batch[label]
        _check_shapes(scores, labels, label)
        likeliest = jnp.argmax(scores, axis=-1)
        correct = likeliest == labels
        metrics = {"accuracy": correct.astype(jnp.float32)}
        if predictions:
            metrics["predicted"] = likeliest.astype(jnp.float32)
        return cross_entropy(scores, labels), metrics

    return Task(loss)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes -log softmax(logits)[label]; NaN where the label is not a class.

    Args:
      logits: f32[..., K].
      labels: i32[...] in 0..K-1.

    Returns:
      f32[...], in nats.

    Example:
      >>> losses = cross_entropy(jnp.zeros((2, 4)), jnp.array([1, 4]))
      >>> print(losses)
      [1.3862944       nan]
    """
    logits = logits.astype(jnp.float32)
    inside = (labels >= 0) & (labels < logits.shape[-1])
    found = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(inside, labels, 0)
    )
    return jnp.where(inside, found, jnp.nan)


def _check_shapes(logits: Any, labels: Any, label: str) -> None:
    """Raises for logits and labels whose shapes or dtypes do not fit."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"expected {label!r} as whole numbers, the classes, got {labels.dtype}"
        )
    shape = getattr(logits, "shape", None)
    if shape is None:
        kind = "a mapping" if isinstance(logits, Mapping) else type(logits).__name__
        raise TypeError(f"expected logits as one array [B, K], got {kind}")
    if labels.ndim != 1 or len(shape) != 2 or shape[0] != labels.shape[0]:
        raise ValueError(
            f"expected logits [B, K] and {label!r} [B], got {list(shape)} and "
            f"{list(labels.shape)}"
        )
