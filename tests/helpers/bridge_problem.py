"""A federation of a few clients for the bridges, and its rounds over a wire of copies."""

import jax
import numpy as np
import optax
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import robust
from fedjax_fm.algorithms import hierarchical, mime, scaffold
from fedjax_fm.bridges import Federation, answer, first_states, run_round, start

SIZES = (6, 1, 4, 0, 6, 3, 5)
TASK, SGD = ffm.Task(mlp_loss), optax.sgd(0.05)
HOW = {"local_steps": 3, "batch_size": 4}
N = len(SIZES)
METHODS = {
    "fedavg": lambda: ffm.fedavg(TASK, SGD, optax.sgd(0.7, momentum=0.9), **HOW),
    "scaffold": lambda: scaffold(TASK, SGD, **HOW),
    "mime": lambda: mime(TASK, optax.sgd(0.05, momentum=0.9), **HOW),
    "hierarchical": lambda: hierarchical(TASK, SGD, tiers=(), **HOW),
    "median": lambda: robust.robust(
        ffm.fedavg(TASK, SGD, **HOW), robust.coordinate_median()
    ),
}


def clients():
    found = make_clients(sizes=tuple(max(size, 1) for size in SIZES))
    return [
        {name: column[:size] for name, column in one.items()}
        for one, size in zip(found, SIZES, strict=True)
    ]


def federation_of(method, **how):
    delta, backbone = make_trees()
    columns = {
        name: jax.ShapeDtypeStruct(column.shape[1:], column.dtype)
        for name, column in clients()[0].items()
    }
    return Federation(
        algorithm=method,
        delta=delta,
        n_clients=N,
        cohort_size=5,
        columns=columns,
        n_max=max(SIZES),
        backbone=backbone,
        seed=3,
        **how,
    )


def remote(federation, rounds):
    """(server's state, metrics of all rounds, clients' states) over a wire of copies."""
    examples = clients()
    states = {k: first_states(federation, k) for k in range(N)}
    state, history = start(federation), []

    def send(requests):
        replies = []
        for request in requests:
            k = request.client
            reply, states[k] = answer(federation, request, examples[k], states[k])
            assert all(isinstance(array, np.ndarray) for array in reply.arrays)
            replies.append(reply)
        return replies[::-1]  # in any order

    for _ in range(rounds):
        state, metrics = run_round(federation, state, send)
        history.append(metrics)
    return state, history, states


def close(a, b):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)

    jax.tree.map(one, a, b)
