"""Cohorts that are known, keys by name, and how often rounds were compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.types import Sampler

UNREAD = 10_000  # an id beyond the active ones, which must not be read


def compile_count(simulator: Simulator) -> int:
    """How many programs of rounds there are; 1 unless shapes changed.

    Args:
      simulator: after `init`. Rounds that the host drives are not counted.
    """
    programs: Any = simulator.programs
    return programs.fused._cache_size() + (programs.ready is not None)


def round_key(seed: int, round: int) -> jax.Array:
    """The key of a round.

    Args:
      seed: of the run.
      round: its number, from 0.
    """
    return jax.random.fold_in(jax.random.key(seed), round)


def client_key(key: jax.Array, client: int, exchange: int = 0) -> jax.Array:
    """The key that an exchange hands to a client; `train` folds step numbers into it.

    Args:
      key: from `round_key`.
      client: its id.
      exchange: the number of the exchange in the round.
    """
    return derive(key, Purpose.CLIENT, client, exchange)


def cohort_state(ids: Sequence[int], capacity: int) -> tuple[jax.Array, jax.Array]:
    """The sampler state with which a `fixed_cohort` draws these clients.

    Args:
      ids: who takes part, in this order.
      capacity: of the sampler.

    Returns:
      (ids i32[capacity], how many of them are active i32[]).
    """
    padded = [*ids, *[UNREAD] * (capacity - len(ids))]
    return jnp.array(padded, jnp.int32), jnp.int32(len(ids))


def fixed_cohort(ids: Sequence[int], capacity: int | None = None) -> Sampler:
    """A sampler that draws the same clients every round, in this order.

    Its state is the cohort, so that another one needs no other program.

    Args:
      ids: who takes part.
      capacity: places; those beyond the ids name a client that is not there. Default as
        many as ids.

    Example:
      >>> sampler = fixed_cohort([3, 0], capacity=3)
      >>> ids, n_active, state = sampler.draw(sampler.init(), jax.random.key(0))
      >>> ids[:n_active].tolist()
      [3, 0]
    """
    capacity = len(ids) if capacity is None else capacity

    def draw(state, key):
        drawn, n_active = state
        return drawn, n_active, state

    def init():
        return cohort_state(ids, capacity)

    return Sampler(init=init, draw=draw, capacity=capacity)
