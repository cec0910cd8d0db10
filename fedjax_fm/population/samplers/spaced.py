"""Clients that rest between participations, as a device's timer makes them."""

import jax.numpy as jnp

from fedjax_fm.population.permutation import permuted
from fedjax_fm.population.samplers.checks import (
    MOST_CLIENTS,
    check_cohort_size,
    check_integer,
    check_n_clients,
)
from fedjax_fm.population.samplers.laws import Spaced
from fedjax_fm.types import Sampler


def spaced(
    n_clients: int,
    cohort_size: int,
    min_separation: int,
    max_participations: int | None = None,
) -> Sampler:
    """Draws `cohort_size` of the clients that may come again, every set as likely.

    All of these, if there are fewer. A client of round t may come again in round t +
    `min_separation` at the earliest, and at most `max_participations` times in all. The
    state is (round i32[], first round in which each may come i32[N], participations
    i32[N]); a draw costs O(population).

    Args:
      n_clients: clients in the population.
      cohort_size: the most clients a round, 1 to n_clients; also the capacity.
      min_separation: rounds, at least 1 (every round).
      max_participations: of a client in the whole run, at least 1; None for no limit.

    Returns:
      A sampler with the law `laws.Spaced(min_separation, max_participations)`.

    Formal guarantees:
      Two participations closer than the minimum, or one too many, cannot occur,
      whatever the key. DP-FTRL's sensitivity rests on this, without any assumption on
      who is sampled.

    Raises:
      ValueError: an argument out of its range.

    References:
      Xu, Z. et al. (2023). Federated Learning of Gboard Language Models with
      Differential Privacy. ACL industry track. arXiv:2305.18465, section 3.

    Example:
      >>> import jax
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.spaced(4, 2, min_separation=2)
      >>> first, n, state = sampler.draw(sampler.init(), jax.random.key(0))
      >>> second, n, state = sampler.draw(state, jax.random.key(1))
      >>> sorted(first.tolist() + second.tolist())
      [0, 1, 2, 3]
    """
    n_clients = check_n_clients(n_clients)
    cohort_size = check_cohort_size(cohort_size, n_clients)
    min_separation = check_integer(
        "min_separation", min_separation, MOST_CLIENTS, "in rounds"
    )
    if max_participations is not None:
        max_participations = check_integer(
            "max_participations", max_participations, MOST_CLIENTS, "or None"
        )
    most = max_participations
    if most is None:
        most = jnp.iinfo(jnp.int32).max
    slots = jnp.arange(cohort_size, dtype=jnp.int32)

    def init():
        zeros = jnp.zeros(n_clients, jnp.int32)
        return jnp.int32(0), zeros, zeros

    def draw(state, key):
        now, first_allowed, times = state
        is_free = (first_allowed <= now) & (times < most)
        # ranks[k]: of client k among the free ones, from 1.
        ranks = jnp.cumsum(is_free, dtype=jnp.int32)
        n_free = ranks[-1]
        positions = jnp.clip(slots, 0, jnp.maximum(n_free - 1, 0))
        places = permuted(key, n_free, positions, n_clients)
        found = jnp.searchsorted(ranks, places + 1)
        ids = jnp.minimum(found, n_clients - 1).astype(jnp.int32)
        n_active = jnp.minimum(n_free, cohort_size)
        came = jnp.where(slots < n_active, ids, n_clients)
        first_allowed = first_allowed.at[came].set(now + min_separation, mode="drop")
        times = times.at[came].add(1, mode="drop")
        return ids, n_active, (now + 1, first_allowed, times)

    return Sampler(
        init=init,
        draw=draw,
        capacity=cohort_size,
        law=Spaced(min_separation, max_participations),
    )
