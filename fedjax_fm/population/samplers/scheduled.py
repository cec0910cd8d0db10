"""Cohorts by a plan: always the same clients, or block after block."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.population.permutation import permuted
from fedjax_fm.population.samplers.checks import (
    MOST_CLIENTS,
    check_cohort_size,
    check_n_clients,
)
from fedjax_fm.types import Sampler


def fixed(ids: Sequence[int] | np.ndarray) -> Sampler:
    """Takes the same clients every round.

    All of them (`fixed(range(n))`), or a cross-silo federation inside a population.

    Args:
      ids: [cohort], client ids, each once; their number is the capacity.

    Returns:
      A sampler without a law.

    Raises:
      ValueError: no id, an id twice, or one that is no integer >= 0. That an id is
        below the number of clients is not known here.

    Example:
      >>> import jax
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.fixed([4, 2])
      >>> ids, n_active, state = sampler.draw(sampler.init(), jax.random.key(0))
      >>> ids.tolist()
      [4, 2]
    """
    members = np.asarray(ids)
    is_list = members.ndim == 1 and members.size > 0
    if not is_list or not np.issubdtype(members.dtype, np.integer):
        raise ValueError(
            "expected a list of one or more integer ids, got ids of shape "
            f"{members.shape} and type {members.dtype}"
        )
    wrong = members[(members < 0) | (members >= MOST_CLIENTS)]
    if wrong.size:
        raise ValueError(
            f"expected 0 <= id < {MOST_CLIENTS}, got id {wrong[0]} in ids; clients "
            "count from 0"
        )
    values, times = np.unique(members, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"expected each id once, got ids with {times.max()} times id "
            f"{values[times.argmax()]}; a client takes part once a round"
        )
    cohort = members.astype(np.int32)

    def draw(state, key):
        return jnp.asarray(cohort), jnp.int32(cohort.size), state

    return Sampler(init=tuple, draw=draw, capacity=cohort.size)


class CyclicState(NamedTuple):
    """Where the pass stands.

    Attributes:
      position: i32[], in [0, n_clients), the next client in the order.
      order: u32[2], names the permutation of this pass; zeros without shuffling.
    """

    position: jax.Array
    order: jax.Array


def cyclic(n_clients: int, cohort_size: int, *, shuffle: bool = False) -> Sampler:
    """Takes one block of clients after another: each comes once before any comes again.

    Without `shuffle` the clients go round in the order of their ids and the blocks wrap
    around: with 5 clients in blocks of 2 the cohorts are 01, 23, 40, 12, 34. After r
    rounds every client was in floor or ceil of r * cohort_size / n_clients cohorts, and
    nothing is random.

    With `shuffle` every pass has a random order of its own, drawn from the key of its
    first round. The last block of a pass is short (n_active = n_clients mod
    cohort_size, if that is not 0): were it filled up from the next pass, a client could
    be in it twice.

    Args:
      n_clients: clients in the population.
      cohort_size: clients a round, 1 to n_clients; also the capacity.
      shuffle: whether each pass has a new order.

    Returns:
      A sampler without a law.

    Raises:
      ValueError: an argument out of its range.

    References:
      Cho, Y. J. et al. (2023). On the Convergence of Federated Averaging with Cyclic
      Client Participation. ICML. arXiv:2302.03109. With `shuffle`: Malinovsky, G. et
      al. (2023). Federated Learning with Regularized Client Participation.
      arXiv:2302.03662 (a pass is their meta epoch).

    Example:
      >>> import jax
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.cyclic(5, 2)
      >>> state, cohorts = sampler.init(), []
      >>> for round in range(3):
      ...     ids, n_active, state = sampler.draw(state, jax.random.key(round))
      ...     cohorts.append(ids.tolist())
      >>> cohorts
      [[0, 1], [2, 3], [4, 0]]
    """
    n_clients = check_n_clients(n_clients)
    cohort_size = check_cohort_size(cohort_size, n_clients)
    if not isinstance(shuffle, bool):
        raise ValueError(
            f"expected shuffle=True or shuffle=False, got shuffle={shuffle!r}; "
            "the order comes from `draw`"
        )

    def init():
        no_order = jnp.zeros(2, jnp.uint32)
        return CyclicState(jnp.int32(0), no_order)

    def in_order(state, key):
        ids = (state.position + jnp.arange(cohort_size, dtype=jnp.int32)) % n_clients
        position = (state.position + cohort_size) % n_clients
        return ids, jnp.int32(cohort_size), state._replace(position=position)

    def shuffled(state, key):
        fresh = jax.random.bits(key, (2,), jnp.uint32)
        order = jnp.where(state.position == 0, fresh, state.order)
        places = state.position + jnp.arange(cohort_size, dtype=jnp.int32)
        order_key = jax.random.wrap_key_data(order, impl="threefry2x32")
        # Places past the end repeat the last one; n_active leaves them out.
        places = jnp.minimum(places, n_clients - 1)
        ids = permuted(order_key, jnp.int32(n_clients), places, n_clients)
        n_active = jnp.minimum(cohort_size, n_clients - state.position)
        position = (state.position + n_active) % n_clients
        return ids, n_active, CyclicState(position, order)

    return Sampler(
        init=init, draw=shuffled if shuffle else in_order, capacity=cohort_size
    )
