"""DP-FedAvg with a clip that binds, and DP-FTRL with both kinds of correlated noise."""

import jax
import jax.numpy as jnp
import optax
from contract import Problem, Row
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.dp_fedavg import AdaptiveClip, dp_fedavg
from fedjax_fm.algorithms.parts import Stream
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.privacy import banded, binary_tree, independent

NORM, Z, STEPS, RATE = 0.3, 0.1, 2, 0.05


def _make(noise, adaptive=None):
    def make() -> Problem:
        delta, backbone = make_trees()
        algorithm = dp_fedavg(
            ffm.Task(mlp_loss),
            optax.sgd(RATE),
            noise=noise,
            noise_multiplier=Z,
            clip_norm=NORM,
            adaptive=adaptive,
            local_steps=STEPS,
            batch_size=8,
        )
        return Problem(
            algorithm=algorithm,
            delta=delta,
            backbone=backbone,
            clients=make_clients(sizes=(6, 1, 4, 2, 6, 3, 5)),
            cohort_size=4,
        )

    return make


def _centralised(noise, multiplier=Z):
    def centralised(problem, client, key):
        batch = jax.tree.map(jnp.asarray, client)

        def loss(delta):
            return jnp.mean(mlp_loss(delta, problem.backbone, batch, key)[0])

        delta = problem.delta
        for _ in range(STEPS):
            delta = jax.tree.map(
                lambda w, g: w - RATE * g, delta, jax.grad(loss)(delta)
            )
        update = jax.tree.map(lambda a, b: a - b, problem.delta, delta)
        length = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(update)))
        noise_key = jax.random.fold_in(
            derive(jax.random.key(5), Purpose.INIT), Stream.UPDATE_NOISE
        )
        drawn, _ = noise.draw(noise.init(problem.delta, noise_key))

        def step(w, d, z):
            return w - (d * jnp.minimum(1, NORM / length) + multiplier * NORM * z)

        return jax.tree.map(step, problem.delta, update, drawn)

    return centralised


PAID = (
    Z**-2 - 2.0**-2
) ** -0.5  # what is left for the update beside a count with noise 1
ROWS = {
    "dp_fedavg": Row(
        _make(independent(), AdaptiveClip(count_noise=1.0)),
        _centralised(independent(), PAID),
    ),
    "dp_ftrl_tree": Row(_make(binary_tree(4)), _centralised(binary_tree(4))),
    "dp_ftrl_banded": Row(_make(banded([1.0, 0.5])), _centralised(banded([1.0, 0.5]))),
}
