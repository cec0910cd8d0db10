"""Less memory for the backward pass, or less work."""

from typing import Any, Literal

from fedjax_fm import checks
from fedjax_fm.models.remat import POLICIES, kept_by
from fedjax_fm.types import Task

What = Literal["none", "dots", "full"]


def remat(task: Task, what: What) -> Task:
    """The task with another choice of what a model's layers keep for their gradients.

    Losses and gradients are the same up to the order of float sums. Without it layers
    keep what their matrix products with weights gave ("dots"), which is fastest where
    memory is slow: on CPUs, and for models that fit.

    Args:
      task: of a model of `fedjax_fm.models`; other models stay as they are.
      what: "none": all activations are kept and nothing is computed again; "dots";
        "full": a layer's input alone is kept, and its forward pass is done twice. Of
        backbones of 7 billion parameters and more nothing else fits a chip.

    Returns:
      A task.

    Raises:
      ValueError: another word.

    References:
      Chen et al., Training deep nets with sublinear memory cost, 2016, arXiv 1604.06174.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, tasks
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> task = remat(tasks.language_modeling(adapted), "full")
    """
    checks.choice("what", what, tuple(POLICIES))

    def loss(*operands: Any):
        with kept_by(what):
            return task.loss(*operands)

    return task._replace(loss=loss)
