"""FedBERT on a small model with tied ends."""

import jax
import jax.numpy as jnp
import optax
import split_problem
from contract import Problem, Row

from fedjax_fm.algorithms.fedbert import fedbert
from fedjax_fm.engine.keys import Purpose, derive

STEPS = 3


def _adam(rate):
    return optax.adam(
        rate, eps=1e-3
    )  # with a smaller one, roundings of gradients near zero would be steps


def _make() -> Problem:
    algorithm = fedbert(
        split_problem.split(), _adam(0.05), _adam(0.02), local_steps=STEPS, batch_size=6
    )
    return Problem(
        algorithm=algorithm,
        delta=split_problem.delta(),
        backbone=(),
        clients=split_problem.clients(),
        cohort_size=4,
    )


def _centralised(problem: Problem, client, round_key):
    """The model in one piece, both optimizers side by side."""
    split = split_problem.split()
    batch, key = (
        jax.tree.map(jnp.asarray, client),
        derive(round_key, Purpose.CLIENT, 0, 0),
    )
    optimizers = {"client": _adam(0.05), "server": _adam(0.02)}

    def loss(delta, key):
        activations, context = split.embed(delta["client"], batch, key)
        losses, _ = split.head(
            delta["client"],
            split.body(delta["server"], activations, context),
            batch,
            key,
        )
        return jnp.mean(losses)

    delta = problem.delta
    moments = {name: optimizers[name].init(delta[name]) for name in delta}
    for i in range(STEPS):
        gradient = jax.grad(loss)(delta, jax.random.fold_in(key, i))
        for name in delta:
            updates, moments[name] = optimizers[name].update(
                gradient[name], moments[name], delta[name]
            )
            delta = {**delta, name: optax.apply_updates(delta[name], updates)}
    return delta


ROWS = {"fedbert": Row(_make, _centralised)}
