"""Clients with quadratic losses 1/2 sum h_k (w - a_k)^2, whose optimum is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_fm as ffm


def loss(delta, backbone, batch, key):
    """Of a delta of one leaf, which is called w or is the delta itself."""
    (w,) = jax.tree.leaves(delta)
    square = batch["h"] * (w - batch["a"]) ** 2
    return jnp.sum(square.reshape(len(square), -1), axis=1) / 2, {}


TASK = ffm.Task(loss)

# Six clients whose optima lie far apart.
N, D = 6, 8
RNG = np.random.default_rng(3)
A = RNG.normal(size=(N, D)).astype(np.float32) * 3
H = RNG.uniform(0.5, 2.0, size=(N, D)).astype(np.float32)
START = np.zeros(D, np.float32)
FULL = {"epochs": 1, "batch_size": 4}  # one example a client: the whole gradient


def clients(h=H, a=A, sizes=None):
    """Client k holds sizes[k] equal rows: any batch of it has the same gradient."""
    sizes = [1] * len(h) if sizes is None else sizes
    return [
        {"h": np.repeat(h[k : k + 1], n, 0), "a": np.repeat(a[k : k + 1], n, 0)}
        for k, n in enumerate(sizes)
    ]


def of_points(points, sizes=None):
    """Clients whose loss is 1/2 (w - a)^2, of numbers a."""
    a = np.array(points, np.float32)
    return clients(np.ones_like(a), a, sizes)


def optimum(h, a):
    """The minimum of the clients' plain mean."""
    return (h * a).sum(0) / h.sum(0)


OPTIMUM = optimum(H, A)


def gradients(w):
    """f64[N, D]: of every one of the six at w, or at a point each."""
    return H * (np.asarray(w, np.float64) - A)


def simulator(algorithm, **given):
    """Of the six, all of them in every round unless told otherwise."""
    how: dict[str, Any] = {"cohort_size": N, "seed": 5, "devices": 1} | given
    population = ffm.Population.from_clients(how.pop("clients", clients()))
    return ffm.Simulator(algorithm, population, **how)


def run(algorithm, rounds, **how):
    """(state, metrics)."""
    one = simulator(algorithm, **how)
    return one.run(one.init(START), rounds)


def distance(state, optimum=OPTIMUM):
    return float(np.linalg.norm(np.asarray(state.delta, np.float64) - optimum))


def tree_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)
