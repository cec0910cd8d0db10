"""Clients with quadratic losses 1/2 sum h_k (w - a_k)^2, whose optimum is known."""

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_fm as ffm
from fedjax_fm.population import samplers

D = 3


def loss(w, backbone, batch, key):
    return 0.5 * jnp.sum(batch["h"] * (w - batch["a"]) ** 2, axis=1), {}


TASK = ffm.Task(loss)


def centres(n=4, seed=0):
    """(h f32[n, D], a f32[n, D]): curvatures from 0.3 to 2.5, minima far apart."""
    rng = np.random.default_rng(seed)
    h = rng.uniform(0.3, 2.5, (n, D)).astype(np.float32)
    return h, rng.normal(size=(n, D)).astype(np.float32) * 2


def clients(h, a, sizes=None):
    """Client k holds sizes[k] equal rows: any batch of it has the same gradient."""
    sizes = [1] * len(h) if sizes is None else sizes
    return [
        {"h": np.repeat(h[k : k + 1], n, 0), "a": np.repeat(a[k : k + 1], n, 0)}
        for k, n in enumerate(sizes)
    ]


def optimum(h, a):
    """The minimum of the clients' plain mean."""
    return (h * a).sum(0) / h.sum(0)


def run(algorithm, data, rounds=1, *, start=None, per_round=None, **how):
    """(state, metrics, simulator); cyclic cohorts 01, 23, 40, ... unless told otherwise."""
    population = ffm.Population.from_clients(data)
    per_round = per_round or len(data)
    how = {"sampler": samplers.cyclic(len(data), per_round), "devices": 1} | how
    simulator = ffm.Simulator(algorithm, population, cohort_size=per_round, **how)
    start = np.full(D, 0.5, np.float32) if start is None else start
    start = jax.tree.map(jnp.asarray, start)
    state, metrics = simulator.run(simulator.init(start), rounds)
    return state, metrics, simulator


def cyclic_cohorts(n, m, rounds):
    """Who `run` draws, round by round."""
    return [[(t * m + i) % n for i in range(m)] for t in range(rounds)]
