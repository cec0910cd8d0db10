"""A step of each kind, strictly: no leaked tracer, no warning."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from preference_problem import END, adapted_llama, pairs, prompts

from fedjax_fm import preferences

PLAIN, SCORED = adapted_llama(), adapted_llama(scored=True)
HOW = preferences.writing(3, eos_token_id=(END, 11))


@pytest.fixture(autouse=True)
def strict():
    with jax.checking_leaks(), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def loss_of(task, adapted, batch):
    batch = {name: jnp.asarray(column) for name, column in batch.items()}

    def loss(delta, backbone, key):
        losses, metrics = task.loss(delta, backbone, batch, key)
        return losses.mean(), metrics

    key = jax.random.key(0)
    return jax.jit(jax.grad(loss, has_aux=True))(adapted.delta, adapted.backbone, key)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_pairs(kind):
    adapted = SCORED if kind == "reward" else PLAIN
    task = {
        "dpo": lambda: preferences.dpo(adapted, length_weight=0.5, length_margin=0.1),
        "reward": lambda: preferences.reward_modeling(adapted),
    }[kind]()
    gradient, _ = loss_of(task, adapted, pairs(2))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_policies(kind):
    if kind == "grpo":
        adapted, reward = PLAIN, preferences.exact_answer()
        objective = preferences.grpo(adapted, reward, HOW, group=2, kl=0.1)
    else:
        adapted = SCORED
        objective = preferences.ppo(adapted, preferences.scored_by(adapted), HOW)
    task = preferences.on_policy(objective)
    gradient, _ = loss_of(task, adapted, prompts(2))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
