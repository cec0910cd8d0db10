"""Regression: squared error of every example."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.tasks.columns import call_model, check_adapted, check_names, need
from fedjax_fm.types import Task, Tree


def regression(
    adapted: Any, *, label: str = "label", inputs: Sequence[str] | None = None
) -> Task:
    """Squared error of an adapted model.

        loss_i = (y_i - label_i)^2,   the mean over coordinates where there are several

    Args:
      adapted: from `peft.apply`; its model returns f32[B] or f32[B, 1], and f32[B, D]
        for labels f32[B, D].
      label: the column of targets, f32[B] or f32[B, D].
      inputs: columns that the model is called with, by name; default: all but the
        label.

    Returns:
      A task with the loss and the metric `absolute_error` of every example.

    Raises:
      TypeError: `adapted` is not from `peft.apply`.
      ValueError: while a round is traced, columns that do not fit the model (the
        message names both), or different shapes of output and label.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import peft
      >>> adapted = peft.apply(nnx.Linear(4, 1, rngs=nnx.Rngs(0)), peft.full())
      >>> batch = {"x": jnp.zeros((2, 4)), "label": jnp.array([0.0, 3.0])}
      >>> task = regression(adapted)
      >>> loss, _ = task.loss(adapted.delta, adapted.backbone, batch, None)
      >>> loss.tolist()
      [0.0, 9.0]
    """
    check_adapted(adapted)
    checks.text("label", label)
    check_names("inputs", inputs)

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, (label,), "the task")
        target = batch[label]
        model = adapted.model(delta, backbone)
        output = call_model(model, batch, (label,), inputs=inputs, key=key)
        if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
            output = output[..., 0]
        if output.shape != target.shape:
            raise ValueError(
                f"expected an output of the label's shape {list(target.shape)}, "
                f"got {list(output.shape)}"
            )
        error = output.astype(jnp.float32) - target.astype(jnp.float32)
        coordinates = tuple(range(1, error.ndim))
        absolute = jnp.mean(jnp.abs(error), axis=coordinates)
        return jnp.mean(error**2, axis=coordinates), {"absolute_error": absolute}

    return Task(loss)
