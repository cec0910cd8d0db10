"""Means and paired differences with 95 % intervals, and the words that they allow."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_fm import checks

LEVEL = 0.05  # of two-sided tests; intervals cover 1 - LEVEL


def student_t975(freedom: int) -> float:
    """97.5 % quantile of Student's t."""
    from scipy import stats  # takes half a second to import

    checks.whole("freedom", freedom, least=1)
    return float(stats.t.ppf(1 - LEVEL / 2, freedom))


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Half of the 95 % interval of the mean of independent values (seeds), Student's.

    Infinite for a single one.
    """
    values = _finite("values", values)
    if values.ndim != 1:
        raise ValueError(
            f"expected one row of values to take the interval of, got {list(values.shape)}"
        )
    n = len(values)
    if not n:
        raise ValueError(
            "expected at least one value to take the interval of, got none"
        )
    if n < 2:
        return float("inf")
    return float(student_t975(n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def plus_minus(
    values: Sequence[float] | np.ndarray, *, scale: float = 1.0, digits: int = 1
) -> str:
    """Mean and 95 % half-width of independent runs, as every "±" of this repository is made.

        mean ± t_{0.975, n-1} sd / sqrt(n),   sd with n - 1 in its denominator

    Args:
      values: one number a run (seed).
      scale: both are multiplied by it; 100 writes shares in percent.
      digits: after the decimal point.

    Returns:
      For example "71.7 ± 4.5"; of a single run just its value, since one run says nothing
      of the spread.

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
    mean = float(np.mean(np.asarray(values, np.float64)))
    text = f"{scale * mean:.{digits}f}"
    return text if np.isinf(half) else f"{text} ± {scale * half:.{digits}f}"


class Comparison(NamedTuple):
    """A mean difference a - b and its 95 % interval.

    The interval is that of this comparison alone. Where several are made, `holm`
    corrects `p`, and with it the verdict: with nine comparisons of equal methods one in
    three studies would find a "difference" without it.
    """

    difference: float
    low: float
    high: float
    pairs: int
    over: str  # "seeds" or "examples": what the interval generalises to
    p: float  # of the two-sided t-test, corrected for the comparisons of the family
    family: int = 1  # comparisons that were made

    @property
    def verdict(self) -> str:
        """What the comparison allows to say.

        "better" or "worse" takes three paired seeds; test examples of one seed speak
        for two trained models only, not for two methods.
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
    """The same comparisons as one family.

    Their p-values corrected so that all verdicts hold together.

        p~_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Guarantee: where no difference is real, the chance of any verdict but "no difference
      seen" is at most 5 %.

    Args:
      comparisons: by name, each as `paired_seeds` or `paired_examples` gave it.

    Raises:
      ValueError: one of them was corrected before.

    References:
      Holm, 1979, A simple sequentially rejective multiple test procedure, Scandinavian
      Journal of Statistics 6.

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
            f"these comparisons were corrected before: {done}; give all of a family at once"
        )
    names = sorted(comparisons, key=lambda name: comparisons[name].p)
    corrected, least = {}, 0.0
    for number, name in enumerate(names):
        one = comparisons[name]
        least = max(least, min(1.0, (len(names) - number) * one.p))
        corrected[name] = one._replace(p=least, family=len(names))
    return {name: corrected[name] for name in comparisons}


def paired_seeds(a: np.ndarray, b: np.ndarray) -> Comparison:
    """A - b over runs that share their seeds, by Student's t.

    With one pair the interval is infinite.
    """
    return _paired(a, b, "seeds")


def paired_examples(a: np.ndarray, b: np.ndarray) -> Comparison:
    """A - b over the same test examples (bool or float).

    What other test sentences would change, for these two trained models. It says
    nothing about other seeds.
    """
    return _paired(a, b, "examples")


def _finite(name: str, values) -> np.ndarray:
    """f64 of numbers or bools; NaN and infinity have no interval, and no verdict either."""
    array = np.asarray(values)
    if not (
        np.issubdtype(array.dtype, np.number) or array.dtype == bool
    ) or np.iscomplexobj(array):
        raise TypeError(
            f"expected {name} as numbers, got {array.dtype}{list(array.shape)}"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} is not finite at {np.flatnonzero(~np.isfinite(array)).tolist()}"
        )
    return array


def _paired(a, b, over: str) -> Comparison:
    from scipy import stats

    a, b = _finite("a", a), _finite("b", b)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(
            f"pairs need two vectors of equal length, got shapes {a.shape} and {b.shape}"
        )
    differences = a - b
    mean, n = float(differences.mean()), len(differences)
    if n == 1:
        return Comparison(
            difference=mean, low=-np.inf, high=np.inf, pairs=1, over=over, p=1.0
        )
    half, error = half_width(differences), differences.std(ddof=1) / np.sqrt(n)
    if error > 0:
        p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    else:
        p = 1.0 if mean == 0 else 0.0
    return Comparison(
        difference=mean, low=mean - half, high=mean + half, pairs=n, over=over, p=p
    )
