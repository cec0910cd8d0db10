"""`check_algorithm` on methods of one's own: one that keeps its promises, and broken ones."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.testing import Problem, check_algorithm

RATE, STEPS = 0.1, 2
TASK = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))


def problem(change=lambda algorithm: algorithm):
    method = ffm.fedavg(TASK, optax.sgd(RATE), local_steps=STEPS, batch_size=8)
    return Problem(
        algorithm=change(method),
        delta=jnp.float32(0),
        backbone=(),
        clients=[{"x": np.ones(n) * n} for n in (3, 1, 4, 2, 5, 6)],
        cohort_size=4,
    )


def descent(problem, client, key):
    w = problem.delta
    for _ in range(STEPS):
        w = w - RATE * (w - client["x"].mean())
    return w


def with_exchange(algorithm, **changes):
    (exchange,) = algorithm.exchanges
    return algorithm._replace(exchanges=(exchange._replace(**changes),))


def test_a_method_that_keeps_them():
    check_algorithm(problem, centralised=descent)


def test_a_wrong_reference_is_found():
    with pytest.raises(AssertionError, match="one client is centralised training"):
        check_algorithm(problem, centralised=lambda *rest: jnp.float32(7))


def test_a_model_that_is_not_finite_is_found():
    def broken(algorithm):
        return algorithm._replace(
            model=lambda server, own, backbone: (server.delta * jnp.nan, backbone)
        )

    with pytest.raises(AssertionError, match="models are finite: the model of client"):
        check_algorithm(lambda: problem(broken))


def test_what_depends_on_empty_places_is_found():
    def broken(algorithm):
        (exchange,) = algorithm.exchanges

        def lift(server, sent, weight):
            total, weight = exchange.reduce.lift(server, sent, weight)
            return total, weight, jnp.float32(1)

        def keep_all(stack, setting):  # counts places, not clients
            total, weight, one = stack.values
            return jnp.sum(total) / jnp.sum(weight) / one.size

        reduce = exchange.reduce._replace(lift=lift, finish=keep_all, keep=True)
        return with_exchange(algorithm, reduce=reduce)

    with pytest.raises(AssertionError, match="padding changes nothing"):
        check_algorithm(lambda: problem(broken))
