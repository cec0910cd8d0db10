"""A virtual clock: lengths of synchronous rounds, order of asynchronous arrivals.

When clients start and finish depends on their machines and on what they do, never on
what was learned. So the whole course of an asynchronous run is an event log that is
made beforehand, on the host; the engine then replays it.
"""

import bisect
import heapq
from typing import NamedTuple

import jax
import numpy as np

from fedjax_fm import checks
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.systems.profile import Profile, numbers_of_clients
from fedjax_fm.types import Sampler


class Schedule(NamedTuple):
    """The event log of an asynchronous run.

    One row for each server update, K arrivals a row in order of time.

    Attributes:
      ids: i32[rounds, K], clients that arrive.
      versions: i32[rounds, K], the server's version that each of them started from.
      started: f64[rounds, K], seconds.
      arrived: f64[rounds, K], seconds.
    """

    ids: np.ndarray
    versions: np.ndarray
    started: np.ndarray
    arrived: np.ndarray

    @property
    def staleness(self) -> np.ndarray:
        """i32[rounds, K]: server updates between a client's start and its arrival.

        The update that the arrival is part of does not count.
        """
        return np.arange(len(self.ids), dtype=np.int32)[:, None] - self.versions

    @property
    def seconds(self) -> np.ndarray:
        """f64[rounds]: when each server update happens."""
        return self.arrived[:, -1]


def asynchronous(
    profile: Profile,
    seconds: np.ndarray,
    *,
    rounds: int,
    buffer_size: int,
    concurrency: int,
    seed: int,
) -> Schedule:
    """The event log of FedBuff: who arrives when, and from which version it started.

    `concurrency` clients are always at work. A client that arrives is replaced at once,
    and every `buffer_size` arrivals the server makes a new version. A client starts
    with the version that is current when it starts (when it comes online, where it has
    to wait for that). It cannot be at work twice at a time, nor be twice in one buffer.

    Args:
      profile: who is online when.
      seconds: f64[N], how long each client takes (`client_seconds`).
      rounds: server updates, at least 1.
      buffer_size: K, arrivals for an update, at least 1.
      concurrency: clients at work, 1 to N - buffer_size.
      seed: of the draws of clients, not negative.

    Returns:
      The `Schedule` that `algorithms.fedbuff` replays.

    Raises:
      ValueError: a number out of bounds, or another shape of `seconds`.

    References:
      Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, 2021,
      arXiv 2106.06639, algorithm 1.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import systems
      >>> profile = systems.log_normal_profile(8, seed=0)
      >>> seconds = np.arange(1.0, 9.0)
      >>> schedule = systems.asynchronous(
      ...     profile, seconds, rounds=3, buffer_size=2, concurrency=4, seed=0
      ... )
      >>> schedule.ids.shape, schedule.staleness[0].tolist()
      ((3, 2), [0, 0])
    """
    checks.whole("rounds", rounds, least=1)
    checks.whole("buffer_size", buffer_size, least=1)
    checks.whole("concurrency", concurrency, least=1)
    checks.whole("seed", seed, least=0)
    n = len(profile.checked().seconds_per_step)
    seconds = numbers_of_clients("seconds", seconds, n)
    if concurrency + buffer_size > n:
        raise ValueError(
            f"expected concurrency + buffer_size <= {n} clients (no client is at "
            f"work or in a buffer twice), got concurrency={concurrency}, "
            f"buffer_size={buffer_size}"
        )
    rng = np.random.default_rng(seed)
    queue: list[tuple[float, int, float]] = []  # (arrival, client, start)
    busy = np.zeros(n, bool)  # at work, or in the buffer that is being filled
    log, updates = [], []  # rows of events; seconds of the server's updates

    def start(now: float) -> None:
        free = np.flatnonzero(~busy)
        client = int(rng.choice(free))
        begin = profile.may_start(client, now)
        busy[client] = True
        heapq.heappush(queue, (begin + float(seconds[client]), client, begin))

    for _ in range(concurrency):
        start(0.0)
    for _ in range(rounds):
        row = []
        for place in range(buffer_size):
            arrival, client, begin = heapq.heappop(queue)
            # All updates until `begin` are known by now: events come in order of time.
            row.append((client, bisect.bisect_right(updates, begin), begin, arrival))
            if place < buffer_size - 1:
                start(arrival)
        updates.append(row[-1][-1])
        busy[[client for client, *_ in row]] = False  # the update empties the buffer
        start(updates[-1])
        log.append(row)
    table = np.array(log)
    return Schedule(
        ids=table[..., 0].astype(np.int32),
        versions=table[..., 1].astype(np.int32),
        started=table[..., 2],
        arrived=table[..., 3],
    )


def synchronous_seconds(
    sampler: Sampler, seed: int, rounds: int, seconds: np.ndarray
) -> np.ndarray:
    """When each round of a synchronous run ends, waiting for its slowest client.

    Args:
      sampler: that of the simulator; its cohorts are drawn again.
      seed: that of the simulator.
      rounds: of the run.
      seconds: f64[N], how long each client takes, see `client_seconds`.

    Returns:
      f64[rounds], seconds from the start of the run.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import systems
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.fixed([0, 2])
      >>> seconds = np.array([1.0, 9.0, 2.0, 9.0])
      >>> systems.synchronous_seconds(sampler, 0, 3, seconds).tolist()
      [2.0, 4.0, 6.0]
    """
    checks.whole("seed", seed, least=0)
    checks.whole("rounds", rounds, least=0)
    seconds = numbers_of_clients("seconds", seconds)
    key, state, ends = jax.random.key(seed), sampler.init(), []
    draw = jax.jit(sampler.draw)
    for index in range(rounds):
        of_round = jax.random.fold_in(key, index)
        ids, n_active, state = draw(state, derive(of_round, Purpose.COHORT))
        cohort = np.asarray(ids)[: int(n_active)]
        ends.append(seconds[cohort].max(initial=0.0))
    return np.cumsum(ends)
