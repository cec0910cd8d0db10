"""A tied head given weights of its own, as PEFT does where one of the two is trained
without the other.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.llama import LlamaForCausalLM
from fedjax_fm.peft.targets import is_tied


def untie(model: nnx.Module) -> nnx.Module:
    """A copy of a language model whose head, tied to its embedding so far, has weights
    of its own: a copy of the table.

    The copy computes the same, up to the rounding of logits in the weights' dtype.
    Takes as much memory more as the embedding.

    Args:
      model: a `LlamaForCausalLM` (LLaMA, Mistral, Qwen).

    Raises:
      ValueError: another class, or a head that has weights of its own already.

    Example: `peft.apply(peft.untie(model), peft.lora(8, targets=["q_proj", "lm_head"]))`
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
    head = nnx.eval_shape(
        lambda: nnx.Linear(
            width, n_words, use_bias=False, param_dtype=table.dtype, rngs=nnx.Rngs(0)
        )
    )
    head.kernel = nnx.Param(jnp.array(table.T))
    free.lm_head = head
    free.config = free.model.config = dataclasses.replace(
        free.config, tie_word_embeddings=False
    )
    return free
