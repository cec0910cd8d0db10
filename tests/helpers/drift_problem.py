"""Quadratics in three dimensions, of as many clients as one likes, and who is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
from quadratics import TASK, clients, optimum

import fedjax_fm as ffm
from fedjax_fm.population import samplers

__all__ = ["TASK", "centres", "clients", "cyclic_cohorts", "optimum", "run"]
D = 3


def centres(n=4, seed=0):
    """(h f32[n, D], a f32[n, D]): curvatures from 0.3 to 2.5, minima far apart."""
    rng = np.random.default_rng(seed)
    h = rng.uniform(0.3, 2.5, (n, D)).astype(np.float32)
    return h, rng.normal(size=(n, D)).astype(np.float32) * 2


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
