"""Clients with one quadratic each, of different curvatures: the optimum is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_fm as ffm

N, D = 6, 8
RNG = np.random.default_rng(3)
A = RNG.normal(size=(N, D)).astype(np.float32) * 3
H = RNG.uniform(0.5, 2.0, size=(N, D)).astype(np.float32)
OPTIMUM = (H * A).sum(0) / H.sum(0)
START = np.zeros(D, np.float32)
FULL = {"epochs": 1, "batch_size": 4}  # one example a client: the whole gradient


def loss(w, backbone, batch, key):
    return jnp.sum(batch["h"] * (w - batch["a"]) ** 2, axis=-1) / 2, {}


TASK = ffm.Task(loss)


def clients(copies=(1,) * N):
    """Client k has its quadratic `copies[k]` times over."""
    return [
        {"a": np.repeat(A[k : k + 1], n, 0), "h": np.repeat(H[k : k + 1], n, 0)}
        for k, n in enumerate(copies)
    ]


def gradients(w):
    """f64[N, D]: of every client at w, or at a point each."""
    return H * (np.asarray(w, np.float64) - A)


def simulator(algorithm, **given):
    how: dict[str, Any] = {"cohort_size": N, "seed": 5, "devices": 1} | given
    population = ffm.Population.from_clients(how.pop("clients", clients()))
    return ffm.Simulator(algorithm, population, **how)


def run(algorithm, rounds, **how):
    one = simulator(algorithm, **how)
    return one.run(one.init(START), rounds)


def distance(state, optimum=OPTIMUM):
    return float(np.linalg.norm(np.asarray(state.delta, np.float64) - optimum))


def tree_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)
