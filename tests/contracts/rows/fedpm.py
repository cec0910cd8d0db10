"""FedPM: masks on a two-layer random network."""

import jax
import jax.numpy as jnp
import optax
from contract import Problem, Row
from mlp_problem import make_clients, make_trees

import fedjax_fm as ffm
from fedjax_fm.algorithms.fedpm import fedpm
from fedjax_fm.engine.keys import Purpose, derive

STEPS, RATE, SOFTENING = 3, 2.0, 0.05


def _loss(weights, backbone, batch, key):
    return (jnp.tanh(batch["x"] @ weights["w"]) @ weights["v"] - batch["y"]) ** 2, {}


def _make() -> Problem:
    algorithm = fedpm(
        ffm.Task(_loss),
        optax.sgd(RATE),
        local_steps=STEPS,
        batch_size=8,
        softening=SOFTENING,
    )
    weights, _ = make_trees()
    theta = jax.tree.map(lambda w: 1 / (1 + jnp.exp(-w)), make_trees(seed=2)[0])
    return Problem(
        algorithm=algorithm,
        delta=theta,
        backbone=weights,
        clients=make_clients(sizes=(6, 1, 4, 2, 6, 3, 5)),
        cohort_size=4,
    )


def _draw(theta, key):
    """Leaves in the order of the tree, named by their number."""
    return {
        name: jax.random.bernoulli(jax.random.fold_in(key, i), theta[name])
        for i, name in enumerate(sorted(theta))
    }


def _one_mask(problem: Problem, client, key):
    train_key, mask_key = jax.random.split(derive(key, Purpose.CLIENT, 0, 0))
    batch = jax.tree.map(jnp.asarray, client)

    def sigmoid(scores):
        return jax.tree.map(lambda s: 1 / (1 + jnp.exp(-s)), scores)

    scores = jax.tree.map(lambda p: jnp.log(p / (1 - p)), problem.delta)
    for step in range(STEPS):
        theta = sigmoid(scores)
        masks = _draw(theta, jax.random.split(jax.random.fold_in(train_key, step))[0])
        weights = jax.tree.map(lambda w, m: w * m, problem.backbone, masks)
        gradient = jax.grad(
            lambda weights: jnp.mean(_loss(weights, (), batch, None)[0])
        )(weights)
        scores = jax.tree.map(
            lambda s, g, w, p: s - RATE * g * w * p * (1 - p),
            scores,
            gradient,
            problem.backbone,
            theta,
        )
    mask = _draw(sigmoid(scores), mask_key)
    return jax.tree.map(lambda m: jnp.where(m, 1 - SOFTENING, SOFTENING), mask)


def _by_threshold(problem: Problem, state, client):
    return jax.tree.map(
        lambda w, p: w * (p > 0.5), problem.backbone, state.carry.server.delta
    ), problem.backbone


ROWS = {"fedpm": Row(_make, _one_mask, _by_threshold)}
