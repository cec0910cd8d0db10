"""Preference tuning: DPO and its variants, reward models, PPO and GRPO, federated.

DPO and reward models are tasks, which any federated method trains. PPO and GRPO write
answers inside the client: `on_policy` makes a task of them, `federated_policy` a method
that learns from a batch of answers several times.
"""

from fedjax_fm.preferences.advantages import (
    discounted_advantages,
    equal_rewards,
    group_advantages,
    kl_estimate,
    whitened,
)
from fedjax_fm.preferences.clipped import Clipped, clipped_policy, clipped_value
from fedjax_fm.preferences.dpo import dpo
from fedjax_fm.preferences.encode import encode_pairs, encode_questions
from fedjax_fm.preferences.federated import federated_policy
from fedjax_fm.preferences.grpo import GroupExperience, grpo
from fedjax_fm.preferences.log_probs import token_log_probs
from fedjax_fm.preferences.objective import PolicyObjective, Terms, on_policy
from fedjax_fm.preferences.ppo import TokenExperience, ppo
from fedjax_fm.preferences.reference import store_reference
from fedjax_fm.preferences.reward import calibrated, pair_scores, reward_modeling
from fedjax_fm.preferences.rewards import (
    Reward,
    checked_answers,
    exact_answer,
    length_reward,
    scored_by,
)
from fedjax_fm.preferences.rollouts import Rollouts, Writing, roll_out, writing
from fedjax_fm.preferences.scored import Scored, with_score
from fedjax_fm.preferences.simpo import simpo
from fedjax_fm.preferences.tables import (
    EncodedTable,
    length_accuracy,
    reasoning_check,
    shuffled_pairs,
    tokenize_pairs,
    tokenize_questions,
)
from fedjax_fm.preferences.warning import warn_of_equal_rewards

__all__ = [
    "Clipped",
    "EncodedTable",
    "GroupExperience",
    "PolicyObjective",
    "Reward",
    "Rollouts",
    "Scored",
    "Terms",
    "TokenExperience",
    "Writing",
    "calibrated",
    "checked_answers",
    "clipped_policy",
    "clipped_value",
    "discounted_advantages",
    "dpo",
    "encode_pairs",
    "encode_questions",
    "equal_rewards",
    "exact_answer",
    "federated_policy",
    "group_advantages",
    "grpo",
    "kl_estimate",
    "length_accuracy",
    "length_reward",
    "on_policy",
    "pair_scores",
    "ppo",
    "reasoning_check",
    "reward_modeling",
    "roll_out",
    "scored_by",
    "shuffled_pairs",
    "simpo",
    "store_reference",
    "token_log_probs",
    "tokenize_pairs",
    "tokenize_questions",
    "warn_of_equal_rewards",
    "whitened",
    "with_score",
    "writing",
]
