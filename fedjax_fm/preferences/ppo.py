"""PPO with a divergence from a reference, at clients or at the server.

Schulman, Wolski, Dhariwal, Radford, Klimov, 2017, arXiv 1707.06347; Ouyang et al., 2022,
arXiv 2203.02155; Zheng et al., 2023, arXiv 2307.04964.

    r_t = -kl log(pi(a_t|s_t) / ref(a_t|s_t)),  and the score at the last token
    A_t of `discounted_advantages`, whitened
    -min(rho A, clip(rho, 1 - eps, 1 + eps) A) + value_weight (V - R)^2 / 2, clipped
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.preferences.advantages import (
    discounted_advantages,
    kl_estimate,
    whitened,
)
from fedjax_fm.preferences.clipped import clipped_policy, clipped_value
from fedjax_fm.preferences.objective import PROMPT, PolicyObjective, Terms
from fedjax_fm.preferences.policy import (
    answer_part,
    check_reward,
    check_writing,
    rewards_of,
)
from fedjax_fm.preferences.reference import reference_delta
from fedjax_fm.preferences.reward import check_scored
from fedjax_fm.preferences.rewards import Reward
from fedjax_fm.preferences.rollouts import Rollouts, Writing, roll_out
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.types import Tree


class TokenExperience(NamedTuple):
    """Answers of B prompts, one each.

    Attributes:
      rollouts: the answers.
      values: f32[B, T], of the critic, before each token.
      advantages: f32[B, T].
      returns: f32[B, T].
      scores: f32[B], of the answers, without the divergence.
      kl: f32[B], nats from the reference, summed over an answer.
    """

    rollouts: Rollouts
    values: jax.Array
    advantages: jax.Array
    returns: jax.Array
    scores: jax.Array
    kl: jax.Array


class Costs(NamedTuple):
    """Numbers of `ppo`, checked; see there."""

    kl: float
    clip: float
    value_clip: float
    value_weight: float
    discount: float
    decay: float
    whiten: bool


def ppo(
    adapted: Any,
    reward: Reward,
    how: Writing,
    *,
    kl: float = 0.01,
    clip: float = 0.2,
    value_clip: float = 0.2,
    value_weight: float = 0.1,
    discount: float = 1.0,
    decay: float = 0.95,
    whiten: bool = True,
    reference: Tree | None = None,
    chunk: int = 128,
) -> PolicyObjective:
    """Proximal policy optimization of answers, with a critic on the policy's own trunk.

    With `federated_policy` the clients write and learn. For RL at the server, with a
    reward model that clients have trained, give it the server's prompts as a population
    of one client.

    Batches have the columns `input_ids` and `attention_mask` i32[B, P] of prompts,
    padded on the left, and what the reward reads. Dropout of the adapter is off.

    Args:
      adapted: from `peft.apply`, of `with_score(model)`: the score is the critic.
      reward: such as `scored_by(adapted, delta)`.
      how: answers are written, see `writing`.
      kl: what a nat of divergence from the reference costs, at least 0.
      clip: eps of the ratio, above 0.
      value_clip: eps of the critic's change, above 0.
      value_weight: of the critic's loss, at least 0.
      discount: gamma, 0 <= gamma <= 1.
      decay: lambda, 0 <= lambda <= 1.
      whiten: whether advantages have mean 0 and variance 1 over a batch's tokens.
      reference: delta of the reference model; None: `adapted.delta`, before training.
      chunk: positions whose logits are in memory at one time.

    Returns:
      An objective for `federated_policy` or `on_policy`, with the metrics `reward` (the
      score without the divergence), `kl` (nats an answer), `answer_tokens`, `clipped`,
      `value_error` of every prompt. Its loss is a mean over the tokens of a batch.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; while a
        round is traced, a model without a score.

    References:
      Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9; Zheng et al. 2023,
      arXiv 2307.04964, sections 3 and 5.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> scored = preferences.with_score(model)
      >>> adapted = peft.apply(scored, peft.lora(2, targets=["q_proj"]))
      >>> reward = preferences.scored_by(adapted)  # of a trained one
      >>> objective = ppo(adapted, reward, preferences.writing(4, eos_token_id=2))
    """
    check_adapted(adapted)
    check_reward(reward)
    check_writing(how)
    checks.real("kl", kl, least=0)
    checks.real("clip", clip, above=0)
    checks.real("value_clip", value_clip, above=0)
    checks.real("value_weight", value_weight, least=0)
    checks.real("discount", discount, least=0, most=1)
    checks.real("decay", decay, least=0, most=1)
    checks.flag("whiten", whiten)
    checks.whole("chunk", chunk, least=1)
    costs = Costs(
        kl=kl,
        clip=clip,
        value_clip=value_clip,
        value_weight=value_weight,
        discount=discount,
        decay=decay,
        whiten=whiten,
    )
    frozen = reference_delta(adapted, reference, stored=False)

    def collect(delta, backbone, batch, rows, key):
        need(batch, PROMPT, "ppo")
        model = check_scored(adapted.model(delta, backbone))
        ids, mask = (batch[name] for name in PROMPT)
        rollouts = roll_out(model, ids, mask, how, key)
        _, values = _read(model, rollouts, how, chunk)
        other = adapted.model(frozen, backbone)
        reference, _ = answer_part(other, rollouts, how, chunk)
        scores = rewards_of(reward, backbone, batch, rollouts)
        return _experience(rollouts, values, reference, scores, rows, costs)

    def learn(delta, backbone, experience: TokenExperience, key) -> Terms:
        model = adapted.model(delta, backbone)
        log_probs, values = _read(model, experience.rollouts, how, chunk)
        return _terms(log_probs, values, experience, costs)

    return PolicyObjective(collect, learn)


def _read(
    model: Any, rollouts: Rollouts, how: Writing, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the answers' tokens and values before them, f32[B, T] each.

    The model is read once for both.
    """
    hidden = model.hidden(rollouts.input_ids, rollouts.attention_mask)

    def known(input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        return hidden

    read = SimpleNamespace(hidden=known, head=model.head)
    log_probs, _ = answer_part(read, rollouts, how, chunk)
    n_new = rollouts.mask.shape[1]
    values = model.scores(hidden[:, -n_new - 1 : -1])
    return log_probs, jnp.where(rollouts.mask, values, 0.0)


def _experience(
    rollouts: Rollouts,
    values: jax.Array,
    reference: jax.Array,
    scores: jax.Array,
    rows: jax.Array,
    costs: Costs,
) -> TokenExperience:
    """Rewards token by token, and what they say of each."""
    mask = rollouts.mask
    apart = kl_estimate(rollouts.log_probs, reference, "k1")
    apart = jnp.where(mask, apart, 0.0)
    is_last = jnp.arange(mask.shape[1]) == rollouts.lengths[:, None] - 1
    rewards = jnp.where(is_last, scores[:, None], 0.0) - costs.kl * apart
    advantages, returns = discounted_advantages(
        rewards, values, mask, discount=costs.discount, decay=costs.decay
    )
    if costs.whiten:
        advantages = whitened(advantages, mask & rows[:, None])
    return TokenExperience(
        rollouts=rollouts,
        values=values,
        advantages=advantages,
        returns=returns,
        scores=scores,
        kl=apart.sum(axis=1),
    )


def _terms(
    log_probs: jax.Array, values: jax.Array, experience: TokenExperience, costs: Costs
) -> Terms:
    """The loss of every answer as a sum over its tokens."""
    rollouts = experience.rollouts
    mask = rollouts.mask
    policy = clipped_policy(
        log_probs, rollouts.log_probs, experience.advantages, costs.clip
    )
    errors = clipped_value(
        values, experience.values, experience.returns, costs.value_clip
    )
    losses = policy.losses + costs.value_weight * errors
    count = mask.sum(axis=1).astype(jnp.float32)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=1, where=mask) / jnp.maximum(count, 1)

    return Terms(
        total=jnp.sum(losses, axis=1, where=mask),
        count=count,
        metrics={
            "reward": experience.scores,
            "kl": experience.kl,
            "answer_tokens": count,
            "clipped": mean(policy.clipped),
            "value_error": mean(2 * errors),
        },
    )
