"""Clients drawn one by one with probability proportional to a weight."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.population.samplers.checks import check_integer, check_n_clients
from fedjax_fm.types import Sampler


def weighted(weights: Sequence[float] | np.ndarray, cohort_size: int) -> Sampler:
    """Draws clients one by one without replacement, in proportion to their weights.

        P(i_1, ..., i_C) = prod_j w[i_j] / (W - w[i_1] - ... - w[i_{j-1}]),  W = sum w

    The C largest of log w + Gumbel noise have this law. The ids come in the order of
    the draws. A client of weight zero is never drawn. With cohort_size > 1 a client's
    share of the cohorts is *not* proportional to its weight: it cannot exceed one. A
    draw costs O(population).

    Args:
      weights: [n_clients], finite and not negative, in any unit; for example
        `population.sizes`. An algorithm that weights its mean by examples then counts
        large clients twice.
      cohort_size: clients a round, 1 to the number of positive weights; also the
        capacity.

    Returns:
      A sampler without a law.

    Raises:
      ValueError: weights that are not a list of finite numbers >= 0, or fewer positive
        ones than `cohort_size`.

    References:
      Efraimidis, P. and Spirakis, P. (2006). Weighted random sampling with a reservoir.
      Information Processing Letters 97. Kool, W. et al. (2019). Stochastic Beams and
      Where to Find Them: The Gumbel-Top-k Trick. ICML. arXiv:1903.06059, section 2.3.

    Example:
      >>> import jax
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.weighted([0.0, 1.0, 3.0], 2)
      >>> ids, n_active, state = sampler.draw(sampler.init(), jax.random.key(0))
      >>> sorted(ids.tolist()), int(n_active)
      ([1, 2], 2)
    """
    weights = _checked(weights)
    candidates = np.flatnonzero(weights > 0)
    what = f"the number of positive weights among {weights.size}"
    cohort_size = check_integer("cohort_size", cohort_size, candidates.size, what)
    logs = np.log(weights[candidates])
    # A constant factor of the weights changes nothing; this one keeps digits.
    logs = (logs - logs.max()).astype(np.float32)

    def draw(state, key):
        # Without mode="high" the noise has a grid so coarse that many of a million
        # clients tie, and low ids win.
        scores = logs + jax.random.gumbel(key, logs.shape, jnp.float32, mode="high")
        _, places = jax.lax.top_k(scores, cohort_size)
        ids = jnp.asarray(candidates, jnp.int32)[places]
        return ids, jnp.int32(cohort_size), state

    return Sampler(init=tuple, draw=draw, capacity=cohort_size)


def _checked(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """f64[n_clients] of finite numbers >= 0."""
    try:
        given = np.asarray(weights)
        # NumPy would read numbers in a text, and drop an imaginary part.
        if given.dtype.kind in "SUc":
            raise TypeError("no real numbers")
        array = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "expected weights that are numbers, one per client, got "
            f"weights={weights!r}"
        ) from error
    if array.ndim != 1:
        raise ValueError(
            "expected weights of shape [n_clients], one per client, got shape "
            f"{array.shape}"
        )
    check_n_clients(array.size)
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if wrong.size:
        raise ValueError(
            "expected finite weights >= 0, got "
            f"weights[{wrong[0]}]={array[wrong[0]]} ({wrong.size} such clients); "
            "give a client weight 0 to leave it out"
        )
    return array
