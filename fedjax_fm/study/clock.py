"""Simulated seconds of a run on clients whose speeds differ."""

import math

import numpy as np

from fedjax_fm.callbacks.base import Metrics
from fedjax_fm.engine import SimulationState, Simulator
from fedjax_fm.systems import client_seconds, log_normal_profile, synchronous_seconds
from fedjax_fm.types import Batches, Repeat

PROFILE_SEED = 0
IN_WORDS = (
    "0.1 s a local step, 1 MB/s and 50 ms a transfer in the median, log-normal over "
    "clients; rounds wait for all"
)


def simulated_seconds(
    simulator: Simulator,
    state: SimulationState,
    metrics: Metrics,
    seed: int,
    travels: bool = True,
) -> np.ndarray:
    """When each round ends.

    Taken from the method's own clock if it has one (a metric `seconds`); else each
    round waits for the slowest client of its cohort.

    Args:
      simulator: of the run.
      state: of the run.
      metrics: of the run.
      seed: of the run.
      travels: False where all data lie in one place, and nothing is sent.

    Returns:
      f64[rounds], seconds since the first round; `IN_WORDS` says on which machines.
    """
    if "seconds" in metrics:
        return np.asarray(metrics["seconds"], np.float64)
    population = simulator.population
    profile = log_normal_profile(population.n_clients, PROFILE_SEED)
    if travels:
        up, down = simulator.bytes_per_client(state)
    else:
        up, down = 0, 0
        profile = profile._replace(latency=np.zeros_like(profile.latency))
    each = client_seconds(profile, _local_steps(simulator), down, up)
    return synchronous_seconds(simulator.sampler, seed, len(metrics["loss"]), each)


def _local_steps(simulator: Simulator) -> np.ndarray:
    """f64[N]: local steps of each client in a round that it takes part in."""
    sizes = simulator.population.sizes
    total = np.zeros(simulator.population.n_clients)
    for group in simulator.algorithm.exchanges:
        if isinstance(group, Repeat):
            times, exchanges = group.times, group.exchanges
        else:
            times, exchanges = 1, (group,)
        for exchange in exchanges:
            total += times * _steps(exchange.batches, sizes)
    return total


def _steps(batches: Batches, sizes: np.ndarray) -> np.ndarray:
    """i64[N]: local steps of each client in one exchange."""
    if batches.steps is not None:
        return np.where(sizes > 0, batches.steps, 0)
    an_epoch = [math.ceil(size / batches.batch_size) for size in sizes]
    return (batches.epochs or 0) * np.array(an_epoch)
