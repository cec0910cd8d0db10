"""A virtual clock: how long synchronous rounds take, and in which order asynchronous
updates arrive.

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
    """The event log of an asynchronous run, one row for each server update, K arrivals
    a row in order of time.
    """

    ids: np.ndarray  # i32[rounds, K], who arrives
    versions: (
        np.ndarray
    )  # i32[rounds, K], the server's version that each of them started from
    started: np.ndarray  # f64[rounds, K], seconds
    arrived: np.ndarray  # f64[rounds, K], seconds

    @property
    def staleness(self) -> np.ndarray:
        """i32[rounds, K]: server updates between a client's start and the one that its
        arrival is part of.
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
    """Runs the clock of FedBuff.

    `concurrency` clients are always at work; whoever arrives is replaced at once, and
    every `buffer_size` arrivals the server makes a new version.

    A client starts with the version that is current when it starts (when it comes
    online, where it has to wait for that). It cannot be at work twice at a time, nor be
    twice in one buffer.

    Args:
      profile: who is online when.
      seconds: f64[N], how long each client takes (`client_seconds`).
      rounds: server updates.
      concurrency: clients at work, at most N - buffer_size.

    References:
      Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, 2021,
      arXiv 2106.06639, algorithm 1.
    """
    checks.whole("rounds", rounds, least=1)
    checks.whole("buffer_size", buffer_size, least=1)
    checks.whole("concurrency", concurrency, least=1)
    checks.whole("seed", seed, least=0)
    n = len(profile.checked().seconds_per_step)
    seconds = numbers_of_clients("seconds", seconds, n)
    if concurrency + buffer_size > n:
        raise ValueError(
            f"expected concurrency + buffer_size <= {n} clients (nobody is at "
            f"work or in a buffer twice), got concurrency={concurrency}, "
            f"buffer_size={buffer_size}"
        )
    rng = np.random.default_rng(seed)
    queue: list[tuple[float, int, float]] = []  # (arrival, client, start)
    busy = np.zeros(n, bool)  # at work, or in the buffer that is being filled
    log, updates = [], []  # rows of events; seconds of the server's updates

    def start(now: float) -> None:
        client = int(rng.choice(np.flatnonzero(~busy)))
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
    """f64[rounds]: when each round of a synchronous run ends, waiting for its slowest client.

    Args:
      sampler, seed: those of the simulator; its cohorts are drawn again.
      seconds: f64[N], see `client_seconds`.
    """
    checks.whole("seed", seed, least=0)
    checks.whole("rounds", rounds, least=0)
    seconds = numbers_of_clients("seconds", seconds)
    key, state, ends = jax.random.key(seed), sampler.init(), []
    draw = jax.jit(sampler.draw)
    for index in range(rounds):
        ids, n_active, state = draw(
            state, derive(jax.random.fold_in(key, index), Purpose.COHORT)
        )
        cohort = np.asarray(ids)[: int(n_active)]
        ends.append(seconds[cohort].max(initial=0.0))
    return np.cumsum(ends)
