"""DPO: Direct Preference Optimization, and its variants.

Rafailov, Sharma, Mitchell, Ermon, Manning, Finn, 2023, arXiv 2305.18290; IPO: Azar et
al., 2023, arXiv 2310.12036; length: Park et al., 2024, arXiv 2403.19159 (R-DPO), Liu et
al., 2024, arXiv 2409.06411 (LD-DPO).

    h = log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)
    sigmoid:  -log sigma(beta h)
    ipo:      (h' - 1 / (2 beta))^2,  h' of means over tokens in the place of sums

IPO's means are those of Hugging Face's TRL; the paper has sums.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.randomness import randomness
from fedjax_fm.preferences.log_probs import total
from fedjax_fm.preferences.pairs import (
    Answers,
    answer_log_probs,
    stored_reference,
)
from fedjax_fm.preferences.reference import reference_delta
from fedjax_fm.preferences.weights import length_weights
from fedjax_fm.tasks.columns import check_adapted
from fedjax_fm.tasks.language_modeling import check_model
from fedjax_fm.types import Task, Tree

LOSSES = ("sigmoid", "ipo")


def dpo(
    adapted: Any,
    *,
    beta: float = 0.1,
    loss: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
    length_weight: float = 1.0,
    length_margin: float = 0.0,
    reference: Tree | None = None,
    stored: bool = False,
    chunk: int = 128,
) -> Task:
    """Direct preference optimization of an adapted language model.

        z = beta h + length_margin (|y_w| - |y_l|)
        loss = -(1 - s) log sigma(z) - s log sigma(-z),   s = label_smoothing

    A margin above 0 explains a part of the preference by the length of the chosen
    answer: the policy then learns the rest. Batches have the columns of
    `encode_pairs`. At the reference the loss is log 2 (IPO: 1 / (4 beta^2)), but where
    the adapter has dropout, of which the reference has none.

    Args:
      adapted: from `peft.apply`; its model is a language model.
      beta: strength of the pull to the reference, above 0.
      loss: "sigmoid" (DPO) or "ipo".
      label_smoothing: s, the share of pairs that are taken to be the wrong way round,
        0 <= s < 0.5; of "sigmoid" alone.
      length_weight: of the tokens of an answer that lie beyond the length of the
        shorter one (LD-DPO), 0 <= length_weight <= 1; 1 is plain DPO.
      length_margin: per token of difference (R-DPO), at least 0; of "sigmoid" alone.
      reference: the delta of the reference model, such as that after supervised tuning;
        None: `adapted.delta`, the model before training. It is a constant of the
        program: store log-probabilities instead where it is large.
      stored: whether the reference's log-probabilities are columns of the batch, see
        `store_reference`. They save half of the forward work.
      chunk: positions whose logits are in memory at one time.

    Returns:
      A task with the metrics `pair_accuracy` (1 where h > 0, one half where h = 0),
      `margin` (beta h), `chosen_reward` and `rejected_reward` (beta log pi/ref),
      `chosen_tokens` and `rejected_tokens` of every pair.

    Raises:
      TypeError, ValueError: an argument is of another kind, out of bounds or does not
        go with the others; while a round is traced, columns that are missing.

    References:
      Rafailov et al. 2023, arXiv 2305.18290, equation 7; Azar et al. 2023, arXiv
      2310.12036, section 5; Park et al. 2024, arXiv 2403.19159; Liu et al. 2024, arXiv
      2409.06411.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> batch = preferences.encode_pairs([[1, 2]], [[3]], [[4, 5]], pad_token_id=0)
      >>> task = dpo(adapted)
      >>> loss, metrics = task.loss(adapted.delta, adapted.backbone, batch, None)
      >>> round(float(loss[0]), 4), float(metrics["rejected_tokens"][0])  # log 2
      (0.6931, 2.0)
    """
    check_adapted(adapted)
    _check(beta, loss, label_smoothing, length_weight, length_margin)
    checks.flag("stored", stored)
    checks.whole("chunk", chunk, least=1)
    frozen = reference_delta(adapted, reference, stored)

    def losses(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        model = adapted.model(delta, backbone)
        check_model(model)
        with randomness(key):
            policy = answer_log_probs(model, batch, chunk)
        if stored:
            other = stored_reference(batch, policy)
        else:
            other = answer_log_probs(adapted.model(frozen, backbone), batch, chunk)
        of_chosen, of_rejected = _rewards(policy, other, loss, length_weight)
        lengths = policy.chosen_counts.sum(-1), policy.rejected_counts.sum(-1)
        h = of_chosen - of_rejected
        metrics = {
            "pair_accuracy": (1 + jnp.sign(h)) / 2,
            "margin": beta * h,
            "chosen_reward": beta * of_chosen,
            "rejected_reward": beta * of_rejected,
            "chosen_tokens": lengths[0].astype(jnp.float32),
            "rejected_tokens": lengths[1].astype(jnp.float32),
        }
        if loss == "ipo":
            return jnp.square(h - 1 / (2 * beta)), metrics
        z = beta * h + length_margin * (lengths[0] - lengths[1])
        return smoothed(z, label_smoothing), metrics

    return Task(losses)


def smoothed(z: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-(1 - s) log sigma(z) - s log sigma(-z), the loss of a preference.

    Args:
      z: f32[...], log-odds that the chosen answer is the better one.
      label_smoothing: s, the share of labels that are the wrong way round.

    Returns:
      f32[...], in nats.

    Example:
      >>> smoothed(jnp.array([0.0])).round(4).tolist()
      [0.6930999755859375]
    """
    right, wrong = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def _rewards(
    policy: Answers, reference: Answers, loss: str, length_weight: float
) -> tuple[jax.Array, jax.Array]:
    """Log pi/ref of the chosen and of the rejected answers, f32[B] each."""
    reference = jax.lax.stop_gradient(reference)
    of_chosen, of_rejected = length_weights(policy, length_weight)
    if loss == "ipo":
        of_chosen = of_chosen / jnp.maximum(of_chosen.sum(-1, keepdims=True), 1)
        of_rejected = of_rejected / jnp.maximum(of_rejected.sum(-1, keepdims=True), 1)
    chosen = total(policy.chosen - reference.chosen, of_chosen)
    rejected = total(policy.rejected - reference.rejected, of_rejected)
    return chosen, rejected


def _check(
    beta: float,
    loss: str,
    label_smoothing: float,
    length_weight: float,
    length_margin: float,
) -> None:
    """Refuses arguments that make no sense, alone or together."""
    checks.real("beta", beta, above=0)
    checks.choice("loss", loss, LOSSES)
    checks.real("label_smoothing", label_smoothing, least=0, below=0.5)
    checks.real("length_weight", length_weight, least=0, most=1)
    checks.real("length_margin", length_margin, least=0)
    if loss == "ipo" and (label_smoothing or length_margin):
        raise ValueError(
            "label_smoothing and length_margin are of loss='sigmoid', got "
            f"label_smoothing={label_smoothing}, length_margin={length_margin} with "
            "loss='ipo'"
        )
