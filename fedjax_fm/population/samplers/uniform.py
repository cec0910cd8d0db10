"""A fixed number of clients, every set of them equally likely."""

import jax.numpy as jnp

from fedjax_fm.population.permutation import permuted
from fedjax_fm.population.samplers.checks import check_cohort_size, check_n_clients
from fedjax_fm.population.samplers.laws import WithoutReplacement
from fedjax_fm.types import Sampler


def uniform(n_clients: int, cohort_size: int) -> Sampler:
    """Draws `cohort_size` clients without replacement, every set as likely.

    The sampling of FedAvg.
    A cohort is the head of a keyed permutation: a draw costs O(cohort_size), whatever
    the population. Where the cohort is the population, nothing is drawn: ids come in
    order.

    Args:
      n_clients: clients in the population.
      cohort_size: clients a round, 1 to n_clients; also the capacity.

    Returns:
      A sampler with the law `laws.WithoutReplacement(n_clients, cohort_size)`.

    Raises:
      ValueError: an argument out of its range.

    References:
      McMahan, B. et al. (2017). Communication-Efficient Learning of Deep Networks from
      Decentralized Data. AISTATS. arXiv:1602.05629, algorithm 1.

    Example:
      >>> import jax
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.uniform(1_000_000, 10)
      >>> ids, n_active, state = sampler.draw(sampler.init(), jax.random.key(0))
      >>> ids.shape, int(n_active)
      ((10,), 10)
    """
    n_clients = check_n_clients(n_clients)
    cohort_size = check_cohort_size(cohort_size, n_clients)

    def draw(state, key):
        ids = jnp.arange(cohort_size, dtype=jnp.int32)
        if cohort_size < n_clients:
            ids = permuted(key, jnp.int32(n_clients), ids, n_clients)
        return ids, jnp.int32(cohort_size), state

    return Sampler(
        init=tuple,
        draw=draw,
        capacity=cohort_size,
        law=WithoutReplacement(n_clients, cohort_size),
    )
