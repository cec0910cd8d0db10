"""Every client takes part on its own, with one probability."""

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.population.permutation import permuted
from fedjax_fm.population.samplers import binomial
from fedjax_fm.population.samplers.checks import check_integer, check_n_clients
from fedjax_fm.population.samplers.laws import Poisson
from fedjax_fm.types import Sampler

OVERFLOW_PROBABILITY = 1e-12


def poisson(n_clients: int, rate: float, capacity: int | None = None) -> Sampler:
    """Draws every client on its own with probability `rate`, in every round anew.

    The sampling that amplification by subsampling and its accountants assume. The size
    of the cohort is drawn from Binomial(n_clients, rate), and the cohort is that long a
    head of a keyed permutation, which has the same law at a cost of O(capacity). A
    cohort may be empty.

    **Overflow.** A cohort larger than `capacity` is not cut, as that would be another
    mechanism than the one that is accounted for: `draw` returns the true size, n_active
    > capacity, and the caller must stop there (only the first `capacity` ids exist).
    Starting again with another seed until no round overflows is a truncation, too.

    Args:
      n_clients: clients in the population; those without examples are drawn like all
        others.
      rate: 0 < rate <= 1; the mean cohort has rate * n_clients clients.
      capacity: room for clients, 1 to n_clients. Default: the smallest with P(size >
        capacity) < 1e-12 a round. For 1e6 clients and a mean cohort of 10, 100 or 1000
        these are 39, 178 and 1230.

    Returns:
      A sampler with the law `laws.Poisson(rate)`.

    Formal guarantees:
      The size is drawn by inversion of the binomial distribution function, from 64
      random bits and probabilities with a relative error below 1e-11.

    Raises:
      ValueError: an argument out of its range.

    References:
      Mironov, I., Talwar, K. and Zhang, L. (2019). Rényi Differential Privacy of the
      Sampled Gaussian Mechanism. arXiv:1908.10530. McMahan, B. et al. (2018). Learning
      Differentially Private Recurrent Language Models. ICLR. arXiv:1710.06963,
      algorithm 1.

    Example:
      >>> import jax
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.poisson(1_000_000, rate=1e-4)
      >>> ids, n_active, state = sampler.draw(sampler.init(), jax.random.key(0))
      >>> ids.shape[0] == sampler.capacity, bool(50 < n_active < 150)
      (True, True)
    """
    n_clients = check_n_clients(n_clients)
    rate = _checked_rate(rate)
    law = binomial.binomial(n_clients, rate)
    if capacity is None:
        capacity = max(binomial.quantile(law, OVERFLOW_PROBABILITY), 1)
    capacity = check_integer(
        "capacity", capacity, n_clients, "the number of clients in the population"
    )
    sizes = binomial.table(law)

    def draw(state, key):
        size_key, order_key = jax.random.split(key)
        slots = jnp.arange(capacity, dtype=jnp.int32)
        ids = permuted(order_key, jnp.int32(n_clients), slots, n_clients)
        return ids, binomial.draw(sizes, size_key), state

    return Sampler(init=tuple, draw=draw, capacity=capacity, law=Poisson(rate))


def _checked_rate(rate: float) -> float:
    """A probability above 0, as the Python float that an accountant sees, too."""
    try:
        checks.real("rate", rate, above=0, most=1)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{error}; it is the probability that a client takes part in a round: "
            "for a mean cohort of m clients pass m / n_clients"
        ) from None
    return float(rate)
