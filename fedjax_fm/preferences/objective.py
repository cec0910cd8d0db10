"""What a policy learns from its own answers, in two halves: collect, then learn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.types import Task, Tree

PROMPT = ("input_ids", "attention_mask")


class Terms(NamedTuple):
    """The loss of B prompts as two sums: that of a batch is sum(total) / sum(count).

    Attributes:
      total: f32[B].
      count: f32[B], what each prompt counts: one, or its answers' tokens.
      metrics: {name: f32[B]}.
    """

    total: jax.Array
    count: jax.Array
    metrics: dict[str, jax.Array]


class PolicyObjective(NamedTuple):
    """An objective of answers that the policy itself gave.

    Attributes:
      collect: `(delta, backbone, batch, rows, key) -> experience`: answers, rewards and
        advantages, leaves [B, G, ...]. `rows` bool[B] says which prompts count, for
        statistics over a batch. Without a key answers are the likeliest.
      learn: `(delta, backbone, experience, key) -> Terms`, differentiated in delta.
    """

    collect: Callable[[Tree, Tree, dict[str, jax.Array], jax.Array, Any], Tree]
    learn: Callable[[Tree, Tree, Tree, Any], Terms]


def on_policy(objective: PolicyObjective) -> Task:
    """The objective as a task that any federated method can train.

    Each batch is a batch of prompts: answers are written with the parameters of that
    local step and are learned from once, so that the ratio of the policies is 1 and
    nothing is clipped. `federated_policy` learns from answers several times.

    The loss of a prompt is total / count: of its own answers alone, so a normalisation
    by tokens is that of a prompt's group here.

    Args:
      objective: such as `grpo(...)` or `ppo(...)`.

    Returns:
      A task with the objective's metrics, the `reward` among them. Where the model is
      evaluated, without a key, answers are the likeliest ones.

    Raises:
      TypeError: it is no objective.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> how = preferences.writing(3)
      >>> task = on_policy(preferences.grpo(adapted, preferences.length_reward, how))
      >>> ids = jnp.array([[1, 2], [3, 4]])
      >>> batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
      >>> key = jax.random.key(0)
      >>> loss, metrics = task.loss(adapted.delta, adapted.backbone, batch, key)
      >>> loss.shape, metrics["reward"].tolist()
      ((2,), [1.0, 1.0])
    """
    objective = checked_objective(objective)

    def loss(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        every = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
        drawn, dropped = (None, None) if key is None else jax.random.split(key)
        fixed = jax.lax.stop_gradient(delta)
        experience = objective.collect(fixed, backbone, batch, every, drawn)
        terms = objective.learn(delta, backbone, experience, dropped)
        return terms.total / jnp.maximum(terms.count, 1), terms.metrics

    return Task(loss)


def checked_objective(objective: Any) -> PolicyObjective:
    """The objective, if it is one.

    Args:
      objective: anything.

    Raises:
      TypeError: it is none.
    """
    if not isinstance(objective, PolicyObjective):
        raise TypeError(
            "expected an objective such as preferences.grpo(...), got "
            f"objective={type(objective).__name__}"
        )
    return objective


def repeated(batch: dict[str, jax.Array], times: int) -> dict[str, jax.Array]:
    """Every row several times over, one behind the other.

    Args:
      batch: {column: [B, ...]}.
      times: G.

    Returns:
      {column: [B G, ...]}.

    Example:
      >>> repeated({"x": jnp.array([1, 2])}, 2)["x"].tolist()
      [1, 1, 2, 2]
    """
    return {name: jnp.repeat(column, times, axis=0) for name, column in batch.items()}


def grouped(tree: Tree, size: int) -> Tree:
    """Leaves [B G, ...] as [B, G, ...].

    Args:
      tree: of arrays.
      size: G.
    """
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)


def flat(tree: Tree) -> Tree:
    """Leaves [B, G, ...] as [B G, ...].

    Args:
      tree: of arrays.
    """
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
