"""Exposure: how far a planted secret has risen among secrets that nobody has seen.

Carlini, Liu, Erlingsson, Kos, Song 2019, "The Secret Sharer", arXiv 1802.08232.
"""

import math
from typing import Any

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.leaks.intervals import Interval

# Of a secret that was not trained on, among many candidates: log2(e).
CHANCE = math.log2(math.e)


def exposure(score: Any, candidates: Any) -> np.ndarray:
    """log2 of how many candidates a secret outranks, by the model's likelihood.

        exposure = log2(n + 1) - log2(rank),   rank = 1 + #{above} + #{equal} / 2

    The candidates are drawn like the secret. A secret that was not trained on has each
    rank with the same probability, and its exposure is `log2(e) = 1.44` in the mean of
    many; one that the model prefers to all n candidates has log2(n + 1), the ceiling
    of this estimate: the exposure among all secrets may be higher.

    Args:
      score: f64[...], log-likelihood of each secret.
      candidates: f64[..., n], of the candidates of each, n >= 1.

    Returns:
      f64[...], in bits.

    Raises:
      ValueError: scores that are not finite, or shapes that do not fit.

    References:
      Carlini et al. 2019, arXiv 1802.08232, definitions 2 and 3, section 4.3.

    Example:
      >>> exposure([-1.0, -9.0], [[-2.0, -3.0, -4.0]] * 2).tolist()
      [2.0, 0.0]
    """
    own, others = np.asarray(score, np.float64), np.asarray(candidates, np.float64)
    if others.shape[:-1] != own.shape or not others.size:
        raise ValueError(
            "expected candidates [..., n], n >= 1, of scores [...], got shapes "
            f"{list(others.shape)} and {list(own.shape)}"
        )
    if not (np.isfinite(own).all() and np.isfinite(others).all()):
        raise ValueError("expected finite scores of secrets and candidates")
    above = (others > own[..., None]).sum(axis=-1)
    equal = (others == own[..., None]).sum(axis=-1)
    rank = 1 + above + equal / 2
    return np.log2(others.shape[-1] + 1) - np.log2(rank)


def mean_exposure(exposures: Any) -> Interval:
    """The mean exposure of several canaries, with an interval that is exact by chance.

    A canary that was not trained on has an exposure of Exp(1) / ln 2 among many
    candidates, so that n of them have a mean of Gamma(n, 1) / (n ln 2); its quantiles
    give the interval

        [2 n mean / c_97.5, 2 n mean / c_2.5],   c of chi-square with 2 n degrees

    Args:
      exposures: f64[n], n >= 1.

    Returns:
      The mean. Canaries left something in the model if the interval lies above `CHANCE`.

    Raises:
      ValueError: no exposure, or one below 0.

    Example:
      >>> found = mean_exposure([6.0, 8.0, 10.0])
      >>> found.value, round(found.low, 2)
      (8.0, 3.32)
    """
    from scipy import stats  # takes half a second to import

    found = np.asarray(exposures, np.float64)
    if found.ndim != 1 or not len(found) or not (found >= 0).all():
        raise ValueError(
            "expected one exposure or more, in bits >= 0, got shape "
            f"{list(found.shape)}"
        )
    total, freedom = 2 * found.sum(), 2 * len(found)
    low, high = (total / stats.chi2.ppf(p, freedom) for p in (0.975, 0.025))
    return Interval(float(found.mean()), float(low), float(high))


def chance_of_rank(epsilon: float, delta: float, rank: int, space: int) -> float:
    """How probable a good rank is at most, under differential privacy.

        P[rank of the secret <= rank] <= e^epsilon rank / space + delta

    Args:
      epsilon: of the change by which the secret came into the data.
      delta: of that guarantee.
      rank: that the secret has or surpasses.
      space: secrets that it was drawn from.

    Returns:
      A bound of at most 1.

    Raises:
      TypeError, ValueError: a number out of bounds.

    Example:
      >>> round(chance_of_rank(2.0, 1e-5, 1, 1000), 4)
      0.0074
    """
    checks.real("epsilon", epsilon, least=0, infinite=True)
    checks.real("delta", delta, least=0, most=1)
    checks.whole("space", space, least=1)
    checks.whole("rank", rank, least=1, most=space)
    if epsilon > math.log(space / rank):
        return 1.0
    return min(1.0, math.exp(epsilon) * rank / space + delta)
