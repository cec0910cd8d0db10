"""Who computes a model's attention."""

from typing import Any, Literal

from fedjax_fm import checks
from fedjax_fm.models.attention import IMPLEMENTATIONS, computed_by
from fedjax_fm.types import Task

Implementation = Literal["xla", "cudnn", "splash"]


def attention(task: Task, implementation: Implementation) -> Task:
    """The task with another implementation of its model's attention.

    Losses and gradients are the same up to the order of float sums.

    Args:
      task: of a model of `fedjax_fm.models`; other models stay as they are.
      implementation: "xla": products, softmax and products, everywhere; "cudnn": flash
        attention on NVIDIA GPUs, of bf16 and f16 alone; "splash": in blocks on TPUs, so
        that memory grows with the length and not with its square, of decoders of Llama's
        family. Elsewhere than on TPUs "splash" is interpreted, which is slow.

    Returns:
      A task. A model that the implementation does not take is refused when rounds are
      traced.

    Raises:
      ValueError: another word.

    References:
      Dao et al., FlashAttention, 2022, arXiv 2205.14135.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, tasks
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> task = attention(tasks.language_modeling(adapted), "splash")
    """
    checks.choice("implementation", implementation, IMPLEMENTATIONS)

    def loss(*operands: Any):
        with computed_by(implementation):
            return task.loss(*operands)

    return task._replace(loss=loss)
