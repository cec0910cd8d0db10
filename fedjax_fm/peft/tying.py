"""Unties a language model's head from its embedding.

PEFT does so where one of the two is trained without the other.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.llama import LlamaForCausalLM
from fedjax_fm.peft.targets import is_tied


def untie(model: nnx.Module) -> nnx.Module:
    """Gives a tied head weights of its own, a copy of the embedding's table.

    The result computes the same, up to the rounding of logits in the weights' dtype. It
    takes the memory of a second table.

    Args:
      model: a `LlamaForCausalLM` (LLaMA, Mistral, Qwen, Gemma); it is not changed.

    Returns:
      A copy with `lm_head`, which methods can adapt.

    Raises:
      ValueError: a model of another class, or a head that has weights of its own.

    Example:
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2, tie_word_embeddings=True,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(peft.untie(model), peft.lora(2, targets=["lm_head"]))
      >>> nnx.to_pure_dict(adapted.delta)["lm_head"]["lora_a"].shape
      (8, 2)
    """
    if not isinstance(model, LlamaForCausalLM):
        raise ValueError(
            f"expected a LlamaForCausalLM, got a {type(model).__name__}, whose "
            "head cannot be untied"
        )
    if not is_tied(model):
        raise ValueError(
            f"the head of this {type(model).__name__} is not tied to its embedding"
        )
    free: Any = nnx.clone(model)
    table = free.model.embed_tokens.embedding[...]
    n_words, width = table.shape

    def make() -> nnx.Linear:
        rngs = nnx.Rngs(0)
        return nnx.Linear(
            width, n_words, use_bias=False, param_dtype=table.dtype, rngs=rngs
        )

    head = nnx.eval_shape(make)
    head.kernel = nnx.Param(jnp.array(table.T))
    free.lm_head = head
    config = dataclasses.replace(free.config, tie_word_embeddings=False)
    free.config = free.model.config = config
    return free
