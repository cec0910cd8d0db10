"""GRPO: group-relative policy optimization.

Shao, Wang, Zhu, Xu, Song, Bi, Zhang, Zhang, Li, Wu, Guo, 2024, arXiv 2402.03300,
equation 3; token sums after Yu et al., 2025, arXiv 2503.14476 (DAPO), and Liu et al.,
2025, arXiv 2503.20783 (Dr. GRPO).

    G answers to each prompt, A_i = (r_i - mean) / (std + 1e-4)
    -min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta (ref/pi - 1 - log ref/pi)
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.preferences.advantages import (
    equal_rewards,
    group_advantages,
    kl_estimate,
)
from fedjax_fm.preferences.clipped import clipped_policy
from fedjax_fm.preferences.objective import (
    PROMPT,
    PolicyObjective,
    Terms,
    flat,
    grouped,
    repeated,
)
from fedjax_fm.preferences.policy import (
    answer_part,
    check_reward,
    check_writing,
    rewards_of,
)
from fedjax_fm.preferences.reference import reference_delta
from fedjax_fm.preferences.rewards import Reward
from fedjax_fm.preferences.rollouts import Rollouts, Writing, roll_out
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.types import Tree

NORMALISATIONS = ("sequence", "token", "constant")


class GroupExperience(NamedTuple):
    """Answers of B prompts, G each; leaves [B, G, ...].

    Attributes:
      rollouts: the answers.
      reference: f32[B, G, T], log-probabilities under the reference; () where none is
        needed.
      advantages: f32[B, G].
      rewards: f32[B, G].
    """

    rollouts: Rollouts
    reference: Any
    advantages: jax.Array
    rewards: jax.Array


def grpo(
    adapted: Any,
    reward: Reward,
    how: Writing,
    *,
    group: int = 8,
    clip: float = 0.2,
    kl: float = 0.0,
    scale: bool = True,
    normalise: Literal["sequence", "token", "constant"] = "token",
    reference: Tree | None = None,
    chunk: int = 128,
) -> PolicyObjective:
    """Group-relative policy optimization with rewards that are computed.

    Batches have the columns `input_ids` and `attention_mask` i32[B, P] of prompts,
    padded on the left, and what the reward reads; `encode_questions` makes them.

    Dropout of the adapter is off: the policy that learns is the one that wrote, so that
    their ratio is 1 at first.

    Where all answers of a group have one reward, nothing is learned from them; the
    metric `equal_rewards` is the share of such groups, and the callback
    `warn_of_equal_rewards` warns where it is one.

    Args:
      adapted: from `peft.apply`; its model is a language model.
      reward: such as `exact_answer()`.
      how: answers are written, see `writing`.
      group: G, answers to a prompt, at least 2.
      clip: eps of the ratio, above 0; of no effect in the first passage.
      kl: beta, what the divergence from the reference costs, at least 0.
      scale: whether rewards are divided by the group's standard deviation.
      normalise: "sequence", each answer's mean over its tokens (GRPO); "token", by all
        tokens of the batch (DAPO), as a task of the group; "constant", by
        `max_new_tokens` (Dr. GRPO, with scale=False). Clients are averaged as the
        federated method does, not by tokens.
      reference: delta of the reference model; None: `adapted.delta`, before training.
      chunk: positions whose logits are in memory at one time.

    Returns:
      An objective for `on_policy` or `federated_policy`, with the metrics `reward`,
      `equal_rewards`, `answer_tokens`, `ended` (the share of answers that end by
      themselves), `clipped` and `kl` of every prompt.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Shao et al. 2024, arXiv 2402.03300, equations 3 and 4; Yu et al. 2025, arXiv
      2503.14476, section 3.3; Liu et al. 2025, arXiv 2503.20783, section 3.1.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> how = preferences.writing(4, eos_token_id=2)
      >>> objective = grpo(adapted, preferences.exact_answer(), how, group=4)
      >>> task = preferences.on_policy(objective)
    """
    check_adapted(adapted)
    check_reward(reward)
    check_writing(how)
    checks.whole("group", group, least=2)
    checks.real("clip", clip, above=0)
    checks.real("kl", kl, least=0)
    checks.flag("scale", scale)
    checks.choice("normalise", normalise, NORMALISATIONS)
    checks.whole("chunk", chunk, least=1)
    frozen = reference_delta(adapted, reference, stored=False)

    def score(delta: Tree, backbone: Tree, rollouts: Rollouts):
        model = adapted.model(delta, backbone)
        return answer_part(model, rollouts, how, chunk)[0]

    def collect(delta, backbone, batch, rows, key):
        need(batch, PROMPT, "grpo")
        model = adapted.model(delta, backbone)
        several = repeated(batch, group)
        ids, mask = (several[name] for name in PROMPT)
        rollouts = roll_out(model, ids, mask, how, key)
        other = score(frozen, backbone, rollouts) if kl > 0 else ()
        found = rewards_of(reward, backbone, several, rollouts)
        rewards = found.reshape(-1, group)
        return GroupExperience(
            rollouts=grouped(rollouts, group),
            reference=grouped(other, group),
            advantages=group_advantages(rewards, scale=scale),
            rewards=rewards,
        )

    def learn(delta, backbone, experience: GroupExperience, key) -> Terms:
        rollouts: Rollouts = flat(experience.rollouts)
        log_probs = score(delta, backbone, rollouts)
        advantages = experience.advantages.reshape(-1, 1)
        terms = clipped_policy(log_probs, rollouts.log_probs, advantages, clip)
        losses, apart = terms.losses, jnp.zeros_like(log_probs)
        if kl > 0:
            apart = kl_estimate(log_probs, flat(experience.reference), "k3")
            losses = losses + kl * apart
        total, count = _normalised(losses, rollouts.mask, normalise)
        more = {"clipped": terms.clipped, "kl": apart}
        metrics = {k: _per_prompt(x, rollouts.mask, group) for k, x in more.items()}
        metrics |= _of_answers(experience, how)
        return Terms(
            total=total.reshape(-1, group).sum(axis=1),
            count=count.reshape(-1, group).sum(axis=1),
            metrics=metrics,
        )

    return PolicyObjective(collect, learn)


def _normalised(
    losses: jax.Array, mask: jax.Array, normalise: str
) -> tuple[jax.Array, jax.Array]:
    """What each answer adds to both sums, f32[R] each."""
    total = jnp.sum(losses, axis=1, where=mask)
    n_tokens = mask.sum(axis=1).astype(jnp.float32)
    if normalise == "token":
        return total, n_tokens
    if normalise == "sequence":
        return total / jnp.maximum(n_tokens, 1), jnp.ones_like(total)
    return total / mask.shape[1], jnp.ones_like(total)


def _per_prompt(values: jax.Array, mask: jax.Array, group: int) -> jax.Array:
    """The mean over the tokens of a group, f32[B]."""
    total = jnp.sum(values, axis=1, where=mask).reshape(-1, group).sum(axis=1)
    count = mask.sum(axis=1).reshape(-1, group).sum(axis=1)
    return total / jnp.maximum(count, 1)


def _of_answers(experience: GroupExperience, how: Writing) -> dict[str, jax.Array]:
    """Metrics of the answers themselves, f32[B] each."""
    rewards, rollouts = experience.rewards, experience.rollouts
    n_new, ends = how.max_new_tokens, jnp.asarray(how.ends, jnp.int32)
    tokens = rollouts.labels[..., -n_new:]
    ended = (tokens[..., None] == ends).any(axis=(-1, -2))
    lengths = rollouts.mask.sum(axis=-1)
    return {
        "reward": rewards.mean(axis=1),
        "equal_rewards": equal_rewards(rewards).astype(jnp.float32),
        "answer_tokens": lengths.astype(jnp.float32).mean(axis=1),
        "ended": ended.astype(jnp.float32).mean(axis=1),
    }
