"""FedKSeed and FedKSeed-Pro on a small perceptron."""

import jax
import jax.numpy as jnp
from contract import Problem, Row
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.fedkseed import fedkseed
from fedjax_fm.engine.keys import Purpose, derive

STEPS, RATE, EPSILON, SEEDS = 3, 0.01, 0.02, 16
SIZES = (6, 1, 4, 2, 6, 3, 5)


def _make(pro: bool) -> Problem:
    delta, backbone = make_trees()
    algorithm = fedkseed(
        ffm.Task(mlp_loss),
        RATE,
        n_seeds=SEEDS,
        epsilon=EPSILON,
        local_steps=STEPS,
        batch_size=8,
        pro=pro,
    )
    return Problem(
        algorithm=algorithm,
        delta=delta,
        backbone=backbone,
        clients=make_clients(sizes=SIZES),
        cohort_size=4,
    )


def _mezo(pro: bool):
    """Steps along directions of jax.random, stored; the seeds are those that the
    client's key draws.
    """

    def centralised(problem: Problem, client, round_key):
        batch = jax.tree.map(jnp.asarray, client)
        loss = jax.jit(
            lambda delta: jnp.mean(mlp_loss(delta, problem.backbone, batch, None)[0])
        )
        draws = jax.random.fold_in(derive(round_key, Purpose.CLIENT, 0, 0), 0)
        if pro:  # in the first round all are as likely
            seeds = (SEEDS * jax.random.uniform(draws, (STEPS,))).astype(jnp.int32)
        else:
            seeds = jax.random.randint(draws, (STEPS,), 0, SEEDS)
        master, delta = derive(jax.random.key(5), Purpose.INIT), problem.delta
        for seed in seeds:
            keys = {
                name: jax.random.fold_in(jax.random.fold_in(master, seed), i)
                for i, name in enumerate(sorted(delta))
            }
            z = {
                name: jax.random.normal(key, delta[name].shape)
                for name, key in keys.items()
            }

            def move(c, delta=delta, z=z):
                return jax.tree.map(lambda x, y: x + c * y, delta, z)

            delta = move(
                -RATE * (loss(move(EPSILON)) - loss(move(-EPSILON))) / (2 * EPSILON)
            )
        return delta

    return centralised


ROWS = {
    "fedkseed": Row(
        lambda: _make(False), _mezo(False), atol=2e-5
    ),  # a difference of two losses has their rounding
    "fedkseed_pro": Row(lambda: _make(True), _mezo(True), atol=2e-5),
}
