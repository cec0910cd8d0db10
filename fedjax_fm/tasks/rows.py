"""A client's batch over the devices that share a backbone."""

from typing import Any

import jax

from fedjax_fm.models.rows import devices_for_rows, in_rows, split_rows
from fedjax_fm.types import Task


def rows_over_model(task: Task) -> Task:
    """The task with the rows of its batches over the devices of `model_parallel`.

    Without it these devices compute all rows together, each with its part of the
    weights, and send activations: little where a batch has few tokens. With it they
    send weights: each layer's are gathered when its turn comes, and each device
    computes its own rows. That pays where a batch has more tokens than a layer has
    rows of weights. Losses and gradients are the same up to the order of float sums.

    Args:
      task: of a model of `fedjax_fm.models` with stacked layers.

    Returns:
      A task; the same where the backbone is not split. Rounds whose batches
      `model_parallel` does not divide are refused when they are traced.

    References:
      Rajbhandari, Rasley, Ruwase, He, ZeRO: memory optimizations toward training
      trillion parameter models, 2020, arXiv 1910.02054, section 5.3.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, tasks
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> task = rows_over_model(tasks.language_modeling(adapted))
    """

    def loss(delta: Any, backbone: Any, batch: Any, key: Any):
        with split_rows(True):
            _check_rows(batch)
            return task.loss(delta, backbone, in_rows(batch), key)

    return task._replace(loss=loss)


def _check_rows(batch: Any) -> None:
    """Refuses a batch that cannot be split evenly."""
    n, parts = len(jax.tree.leaves(batch)[0]), devices_for_rows()
    if n % parts:
        raise ValueError(
            f"expected batches that model_parallel={parts} divides for "
            f"rows_over_model, got {n} rows; change batch_size"
        )
