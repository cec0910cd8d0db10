"""Means and paired differences with 95 % intervals, and verdicts about them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_fm import checks

LEVEL = 0.05  # of two-sided tests; intervals cover 1 - LEVEL


def student_t975(freedom: int) -> float:
    """97.5 % quantile of Student's t distribution.

    Args:
      freedom: degrees of freedom, at least 1.

    Returns:
      The quantile, as in printed tables.

    Raises:
      TypeError, ValueError: `freedom` is not a whole number >= 1.

    Example:
      >>> round(student_t975(2), 3)
      4.303
    """
    from scipy import stats  # takes half a second to import

    checks.whole("freedom", freedom, least=1)
    return float(stats.t.ppf(1 - LEVEL / 2, freedom))


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Half of the 95 % interval of the mean of independent values, such as seeds.

        t_{0.975, n-1} sd / sqrt(n),   sd with n - 1 in its denominator

    Args:
      values: f64[n], n >= 1, all finite.

    Returns:
      The half-width; infinite for a single value, which says nothing of the spread.

    Raises:
      TypeError: the values are not numbers.
      ValueError: there is none, one is NaN or infinite, or they are not one row.

    Example:
      >>> round(half_width([3.0, 5.0, 10.0]), 2)
      8.96
    """
    values = _finite("values", values)
    if values.ndim != 1:
        raise ValueError(
            "expected one row of values to take the interval of, got "
            f"{list(values.shape)}"
        )
    n = len(values)
    if not n:
        raise ValueError(
            "expected at least one value to take the interval of, got none"
        )
    if n < 2:
        return float("inf")
    error = np.std(values, ddof=1) / np.sqrt(n)
    return float(student_t975(n - 1) * error)


def plus_minus(
    values: Sequence[float] | np.ndarray, *, scale: float = 1.0, digits: int = 1
) -> str:
    """Writes the mean of independent runs and half of its 95 % interval as text.

        mean ± t_{0.975, n-1} sd / sqrt(n),   sd with n - 1 in its denominator

    Args:
      values: one number for each run (seed).
      scale: multiplies mean and half-width; 100 writes shares in percent.
      digits: after the decimal point.

    Returns:
      Text such as "71.7 ± 5.2". For a single run it is the value alone, since one run
      says nothing about the spread.

    Raises:
      ValueError: there is no value, one is NaN or infinite, or they are not one row.
      TypeError: they are not numbers.

    Example:
      >>> plus_minus([0.70, 0.71, 0.74], scale=100)
      '71.7 ± 5.2'
      >>> plus_minus([0.717], scale=100)
      '71.7'
    """
    checks.real("scale", scale, above=0)
    checks.whole("digits", digits, least=0)
    half = half_width(values)
    mean = float(np.mean(values, dtype=np.float64))
    text = f"{scale * mean:.{digits}f}"
    return text if np.isinf(half) else f"{text} ± {scale * half:.{digits}f}"


class Comparison(NamedTuple):
    """A mean difference a - b and its 95 % interval.

    The interval is that of this comparison alone. `holm` corrects `p`, and with it the
    verdict, where several comparisons are made. Without it, a study that compares nine
    pairs of equal methods reports a difference in one case of three.

    Attributes:
      difference: the mean of a - b.
      low, high: ends of the 95 % interval of the mean; infinite for a single pair.
      pairs: how many.
      over: "seeds" or "examples": what the interval generalises to.
      p: of the two-sided paired t-test, corrected for the comparisons of the family.
      family: comparisons that were corrected together; 1 where none was.
    """

    difference: float
    low: float
    high: float
    pairs: int
    over: str
    p: float
    family: int = 1

    @property
    def verdict(self) -> str:
        """What can be concluded, in words.

        "better" and "worse" need three paired seeds. Test examples of one seed compare
        two trained models only, not two methods.
        """
        if not self.p < LEVEL or self.low <= 0 <= self.high:
            return "no difference seen"
        higher = self.low > 0
        if self.over == "seeds" and self.pairs >= 3:
            return "better" if higher else "worse"
        where = "over these seeds" if self.over == "seeds" else "for these models"
        return (
            f"{'higher' if higher else 'lower'} {where}; three paired seeds are "
            "needed to call a method better"
        )

    def __str__(self) -> str:
        corrected = f" (Holm, {self.family} comparisons)" if self.family > 1 else ""
        return (
            f"{100 * self.difference:+.2f} points, 95 % interval "
            f"[{100 * self.low:+.2f}, {100 * self.high:+.2f}] over {self.pairs} "
            f"paired {self.over}: {self.verdict}{corrected}"
        )


def holm(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """Corrects the p-values of several comparisons so that all verdicts hold together.

        p~_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Where no difference is real, the chance of any verdict other than "no difference
    seen" is at most 5 % for the whole family.

    Args:
      comparisons: {name: comparison}, from `paired_seeds` or `paired_examples`.

    Returns:
      {name: comparison} in the same order, with corrected `p` and with `family` = m.

    Raises:
      ValueError: one of them was corrected before.

    References:
      Holm (1979). A simple sequentially rejective multiple test procedure.
      Scandinavian Journal of Statistics 6.

    Example:
      >>> import numpy as np
      >>> base = np.array([0.70, 0.71, 0.69])
      >>> one = paired_seeds(base + [0.05, 0.06, 0.05], base)
      >>> both = holm({"a": one, "b": paired_seeds(base + [0.01, -0.02, 0.0], base)})
      >>> both["a"].verdict, both["b"].verdict, both["a"].family
      ('better', 'no difference seen', 2)
    """
    done = sorted(name for name, one in comparisons.items() if one.family > 1)
    if done:
        raise ValueError(
            f"these comparisons were corrected before: {done}; give all of a family at "
            "once"
        )
    names = sorted(comparisons, key=lambda name: comparisons[name].p)
    corrected, least = {}, 0.0
    for number, name in enumerate(names):
        one = comparisons[name]
        left = len(names) - number
        least = max(least, min(1.0, left * one.p))
        corrected[name] = one._replace(p=least, family=len(names))
    return {name: corrected[name] for name in comparisons}


def paired_seeds(a: np.ndarray, b: np.ndarray) -> Comparison:
    """Compares two methods by a - b over runs that share their seeds.

    Args:
      a: f64[n], a score of the first method for each seed.
      b: f64[n], of the second method, in the same order of seeds.

    Returns:
      The mean of a - b and its 95 % interval by Student's t. With one pair the interval
      is infinite.

    Raises:
      TypeError: they are not numbers.
      ValueError: they are not finite vectors of one length >= 1.

    Example:
      >>> a, b = np.array([0.90, 0.91, 0.92]), np.array([0.80, 0.812, 0.819])
      >>> found = paired_seeds(a, b)
      >>> round(found.difference, 3), found.verdict
      (0.1, 'better')
    """
    return _paired(a, b, "seeds")


def paired_examples(a: np.ndarray, b: np.ndarray) -> Comparison:
    """Compares two trained models by a - b over the same test examples.

    The interval says what other test examples could change for these two models. It
    says nothing about other seeds.

    Args:
      a: bool[n] or f32[n], a score of the first model for each example.
      b: likewise of the second model, in the same order of examples.

    Returns:
      The mean of a - b and its 95 % interval by Student's t.

    Raises:
      TypeError: they are not numbers or bools.
      ValueError: they are not finite vectors of one length >= 1.

    Example:
      >>> a = np.array([True, True, True, False])
      >>> b = np.array([True, False, True, False])
      >>> found = paired_examples(a, b)
      >>> found.difference, found.pairs, found.verdict
      (0.25, 4, 'no difference seen')
    """
    return _paired(a, b, "examples")


def _finite(name: str, values) -> np.ndarray:
    """Values as f64; refuses what is not real and finite, which has no interval."""
    array = np.asarray(values)
    numbers = np.issubdtype(array.dtype, np.number) or array.dtype == bool
    if not numbers or np.iscomplexobj(array):
        raise TypeError(
            f"expected {name} as numbers, got {array.dtype}{list(array.shape)}"
        )
    array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        places = np.flatnonzero(~finite)
        raise ValueError(f"{name} is not finite at {places.tolist()}")
    return array


def _paired(a, b, over: str) -> Comparison:
    """See `paired_seeds`."""
    from scipy import stats

    a, b = _finite("a", a), _finite("b", b)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(
            "pairs need two vectors of equal length, got shapes "
            f"{a.shape} and {b.shape}"
        )
    differences = a - b
    n = len(differences)
    mean = float(differences.mean())
    if n == 1:
        return Comparison(
            difference=mean, low=-np.inf, high=np.inf, pairs=1, over=over, p=1.0
        )
    half = half_width(differences)
    error = differences.std(ddof=1) / np.sqrt(n)
    if error > 0:
        statistic = abs(mean) / error
        p = 2 * float(stats.t.sf(statistic, n - 1))
    else:
        p = 1.0 if mean == 0 else 0.0
    return Comparison(
        difference=mean, low=mean - half, high=mean + half, pairs=n, over=over, p=p
    )
