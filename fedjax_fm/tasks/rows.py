"""A client's batch over the devices that share a backbone."""

from typing import Any

from fedjax_fm.models.rows import in_rows, split_rows
from fedjax_fm.types import Task


def rows_over_model(task: Task) -> Task:
    """The task with the rows of its batches over the devices of `model_parallel`.

    Without it these devices compute all rows together, each with its part of the
    weights, and send activations: little where a batch has few tokens. With it they
    send weights: each layer's are gathered when its turn comes, and each device
    computes its own rows. That pays where a batch has more tokens than a layer has
    rows of weights. Losses and gradients are the same up to the order of float sums.

    Args:
      task: of a model of `fedjax_fm.models` with stacked layers, whose batches
        `model_parallel` divides; other batches stay together.

    Returns:
      A task; the same where the backbone is not split.

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
            return task.loss(delta, backbone, in_rows(batch), key)

    return task._replace(loss=loss)
