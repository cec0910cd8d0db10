"""SimPO: Simple Preference Optimization with a Reference-Free Reward.

Meng, Xia, Chen, 2024, arXiv 2405.14734, equation 6.

    -log sigma(beta mean log pi(y_w|x) - beta mean log pi(y_l|x) - gamma)

with means over the tokens of each answer: no reference, and length has no say.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.randomness import randomness
from fedjax_fm.preferences.dpo import smoothed
from fedjax_fm.preferences.log_probs import total
from fedjax_fm.preferences.pairs import answer_log_probs
from fedjax_fm.tasks.columns import check_adapted
from fedjax_fm.tasks.language_modeling import check_model
from fedjax_fm.types import Task, Tree


def simpo(
    adapted: Any, *, beta: float = 2.0, gamma: float = 1.0, chunk: int = 128
) -> Task:
    """Preference optimization by mean log-probabilities, without a reference.

    Args:
      adapted: from `peft.apply`; its model is a language model.
      beta: scale of the mean log-probabilities, above 0; 2 to 2.5 in the paper.
      gamma: the margin that a pair is to have, at least 0.
      chunk: positions whose logits are in memory at one time.

    Returns:
      A task with the metrics `pair_accuracy` and `margin` (before gamma is taken off),
      `chosen_tokens` and `rejected_tokens`; columns as for `dpo`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; while a
        round is traced, columns that are missing.

    References:
      Meng, Xia, Chen 2024, arXiv 2405.14734, equation 6.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> pairs = preferences.encode_pairs([[1, 2]], [[3]], [[4, 5]], pad_token_id=0)
      >>> task = simpo(adapted)
      >>> loss, _ = task.loss(adapted.delta, adapted.backbone, pairs, None)
      >>> loss.shape
      (1,)
    """
    check_adapted(adapted)
    checks.real("beta", beta, above=0)
    checks.real("gamma", gamma, least=0)
    checks.whole("chunk", chunk, least=1)

    def losses(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        model = adapted.model(delta, backbone)
        check_model(model)
        with randomness(key):
            found = answer_log_probs(model, batch, chunk)
        chosen = _mean(found.chosen, found.chosen_counts)
        rejected = _mean(found.rejected, found.rejected_counts)
        z = beta * (chosen - rejected)
        metrics = {
            "pair_accuracy": (1 + jnp.sign(z)) / 2,
            "margin": z,
            "chosen_tokens": found.chosen_counts.sum(-1).astype(jnp.float32),
            "rejected_tokens": found.rejected_counts.sum(-1).astype(jnp.float32),
        }
        return smoothed(z - gamma), metrics

    return Task(losses)


def _mean(log_probs: jax.Array, counts: jax.Array) -> jax.Array:
    """The mean over a row's tokens that count, f32[B]."""
    return total(log_probs, counts) / jnp.maximum(counts.sum(-1), 1)
