"""Intervals of shares and of areas under a curve, also where nothing went wrong."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.intervals import LEVEL

EDGE = 1e-12


class Interval(NamedTuple):
    """A figure with its 95 % interval.

    Attributes:
      value: what was measured.
      low: end of the interval.
      high: other end.
    """

    value: float
    low: float
    high: float


def share_interval(hits: int, trials: int) -> Interval:
    """The share of successes with the interval of Clopper and Pearson.

        low:  P[Bin(n, p) >= k] = 2.5 %,   high:  P[Bin(n, p) <= k] = 2.5 %

    Args:
      hits: k, from 0 to `trials`.
      trials: n, at least 1.

    Returns:
      The share; its interval covers the truth in 95 % of cases or more.

    Raises:
      TypeError, ValueError: no such counts.

    References:
      Clopper, Pearson 1934, Biometrika 26.

    Example:
      >>> found = share_interval(0, 10)
      >>> found.value, found.low, round(found.high, 3)
      (0.0, 0.0, 0.308)
    """
    from scipy import stats  # takes half a second to import

    checks.whole("trials", trials, least=1)
    checks.whole("hits", hits, least=0, most=trials)
    found = stats.binomtest(hits, trials).proportion_ci(1 - LEVEL, method="exact")
    return Interval(hits / trials, float(found.low), float(found.high))


def area_interval(area: float, n_first: int, n_second: int) -> Interval:
    """An area under the ROC curve with Newcombe's interval.

        (area - t)^2 = z^2 V(t),   N = (m + n) / 2 - 1,
        V(t) = t (1 - t) [1 + N (1 - t) / (2 - t) + N t / (1 + t)] / (m n)

    Unlike those that take the spread from the data, it does not shrink to a point where
    both sides are apart, and at t = 1/2 it is the test of Mann and Whitney.

    Args:
      area: between 0 and 1.
      n_first: m, independent examples of one side, at least 1.
      n_second: n, of the other.

    Returns:
      The area; ends between 0 and 1.

    Raises:
      TypeError, ValueError: no area, or an empty side.

    References:
      Newcombe 2006, "Confidence intervals for an effect size measure based on the
      Mann-Whitney statistic, part 2", Statistics in Medicine 25, method 5; Hanley,
      McNeil 1982, Radiology 143.

    Example:
      >>> found = area_interval(1.0, 20, 20)
      >>> round(found.low, 2), found.high
      (0.9, 1.0)
    """
    from scipy import stats  # takes half a second to import

    checks.real("area", area, least=0, most=1)
    checks.whole("n_first", n_first, least=1)
    checks.whole("n_second", n_second, least=1)
    more = (n_first + n_second) / 2 - 1
    width = float(stats.norm.ppf(1 - LEVEL / 2))

    def excess(t: float) -> float:
        spread = 1 + more * (1 - t) / (2 - t) + more * t / (1 + t)
        variance = t * (1 - t) * spread / (n_first * n_second)
        return (area - t) ** 2 - width**2 * variance

    low, high = 0.0, 1.0
    inside = min(max(area, EDGE), 1 - EDGE)  # at 0 and 1 itself V is 0
    if area > 0:
        low = root_of(excess, 0.0, inside)
    if area < 1:
        high = root_of(excess, inside, 1.0)
    return Interval(float(area), low, high)


def root_of(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a continuous function is zero, between two places of different signs.

    Args:
      function: of one number.
      low: one end.
      high: the other.
    """
    from scipy import optimize

    found: Any = optimize.brentq(function, low, high)
    return float(found)


def area_between(first: np.ndarray, second: np.ndarray) -> float:
    """The share of pairs whose first score is the larger one; ties count half.

    The statistic of Mann and Whitney over m n.

    Args:
      first: f64[m], m >= 1, all finite.
      second: f64[n], n >= 1, all finite.

    Returns:
      The area under the ROC curve.

    Example:
      >>> area_between(np.array([2.0, 1.0]), np.array([1.0, 0.0]))
      0.875
    """
    from scipy import stats

    above = stats.mannwhitneyu(first, second).statistic
    return float(above / (len(first) * len(second)))
