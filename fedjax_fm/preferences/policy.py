"""What the objectives of a policy share."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.preferences.log_probs import token_log_probs
from fedjax_fm.preferences.rewards import Reward
from fedjax_fm.preferences.rollouts import Rollouts, Writing
from fedjax_fm.types import Tree


def answer_part(
    model: Any, rollouts: Rollouts, how: Writing, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the answers' tokens, read anew without a cache.

    Args:
      model: a language model.
      rollouts: R answers of at most T tokens.
      how: they were written; its temperature is in the log-probabilities.
      chunk: see `token_log_probs`.

    Returns:
      (f32[R, T], bool[R, T]).
    """
    found, counts = token_log_probs(
        model,
        rollouts.input_ids,
        rollouts.attention_mask,
        rollouts.labels,
        temperature=how.temperature,
        chunk=chunk,
    )
    n_new = rollouts.mask.shape[1]
    return found[:, -n_new:], counts[:, -n_new:]


def rewards_of(
    reward: Reward, backbone: Tree, batch: dict[str, jax.Array], rollouts: Rollouts
) -> jax.Array:
    """The rewards of the answers, checked.

    Args:
      reward: the function.
      backbone: what is frozen.
      batch: of the prompts, a row an answer.
      rollouts: R answers.

    Returns:
      f32[R].

    Raises:
      ValueError: the reward does not give one number an answer.
    """
    found = reward(backbone, batch, rollouts)
    n_rows = rollouts.mask.shape[0]
    if getattr(found, "shape", None) != (n_rows,):
        shape = getattr(found, "shape", type(found).__name__)
        raise ValueError(
            f"expected one reward per answer, float32[{n_rows}], got {shape}"
        )
    return jax.lax.stop_gradient(found.astype(jnp.float32))


def check_reward(reward: Any) -> None:
    """Raises TypeError unless `reward` is a function.

    Args:
      reward: anything.
    """
    if not callable(reward):
        raise TypeError(
            "expected reward as a function (backbone, batch, rollouts) -> f32[R], such "
            f"as preferences.exact_answer(), got reward={checks.shown(reward)}"
        )


def check_writing(how: Any) -> None:
    """Raises TypeError unless `how` says how answers are written.

    Args:
      how: anything.
    """
    checks.instance("how", how, Writing, "write preferences.writing(max_new_tokens)")
