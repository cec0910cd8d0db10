"""Paired differences with 95 % intervals, and the words that they allow."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Two-sided 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; beyond, the normal approximation of
# Cornish and Fisher is exact to three digits.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def student_t975(freedom: int) -> float:
    """97.5 % quantile of Student's t."""
    if freedom < 1:
        raise ValueError(f"expected at least 1 degree of freedom, got {freedom}")
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Half of the 95 % interval of the mean of independent values (seeds), Student's; infinite for a single one."""
    n = len(values)
    return float(student_t975(n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("inf")


class Comparison(NamedTuple):
    """A mean difference a - b and its 95 % interval."""

    difference: float
    low: float
    high: float
    pairs: int
    over: str  # "seeds" or "examples": what the interval generalises to

    @property
    def verdict(self) -> str:
        """What the interval allows to say. "better" or "worse" takes three paired seeds; test examples of one seed
        speak for two trained models only, not for two methods."""
        if self.low <= 0 <= self.high or not np.isfinite(self.low):
            return "no difference seen"
        higher = self.low > 0
        if self.over == "seeds" and self.pairs >= 3:
            return "better" if higher else "worse"
        where = "over these seeds" if self.over == "seeds" else "for these models"
        return f"{'higher' if higher else 'lower'} {where}; three paired seeds are needed to call a method better"

    def __str__(self) -> str:
        return (
            f"{100 * self.difference:+.2f} points, 95 % interval [{100 * self.low:+.2f}, {100 * self.high:+.2f}] "
            f"over {self.pairs} paired {self.over}: {self.verdict}"
        )


def paired_seeds(a: np.ndarray, b: np.ndarray) -> Comparison:
    """a - b over runs that share their seeds, by Student's t; with one pair the interval is infinite."""
    return _paired(a, b, "seeds")


def paired_examples(a: np.ndarray, b: np.ndarray) -> Comparison:
    """a - b over the same test examples (bool or float): what other test sentences would change, for these two
    trained models. It says nothing about other seeds."""
    return _paired(a, b, "examples")


def _numbers(values) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, got {values!r:.80}") from error


def _paired(a, b, over: str) -> Comparison:
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"pairs need two vectors of equal length, got shapes {a.shape} and {b.shape}")
    broken = ~(np.isfinite(a) & np.isfinite(b))
    if broken.any():  # NaN is neither above nor below 0, and would read as no difference
        where = int(broken.argmax())
        raise ValueError(f"expected finite numbers, got {a[where]} and {b[where]} in pair {where}")
    difference = a - b
    n = len(difference)
    if n == 1:
        return Comparison(float(difference[0]), -np.inf, np.inf, 1, over)
    half = student_t975(n - 1) * difference.std(ddof=1) / np.sqrt(n)
    mean = float(difference.mean())
    return Comparison(mean, mean - half, mean + half, n, over)
