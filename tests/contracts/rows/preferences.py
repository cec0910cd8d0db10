"""Policies that learn from their experience twice a batch; here experience is the batch."""

import jax.numpy as jnp
import optax
from contract import Row
from mlp_problem import mlp_loss

from fedjax_fm import preferences
from rows.optimisation import RATE, STEPS, WALK, problem, trained

INNER = 2


def _collect(delta, backbone, batch, rows, key):
    return batch


def _learn(delta, backbone, experience, key):
    losses, _ = mlp_loss(delta, backbone, experience, key)
    return preferences.Terms(losses, jnp.ones_like(losses), {"reward": -losses})


OBJECTIVE = preferences.PolicyObjective(_collect, _learn)


def _make():
    method = preferences.federated_policy(
        OBJECTIVE, optax.sgd(RATE), inner_epochs=INNER, **WALK
    )
    return problem(method)


def _twice(problem, client, key):
    return trained(problem, client, steps=INNER * STEPS)


ROWS = {"federated_policy": Row(_make, _twice)}
