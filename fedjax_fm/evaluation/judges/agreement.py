"""How far two judges agree about the same pairs."""

from typing import NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.judges.compare import Judged

_DECIDED = ("a", "b", "tie")


class JudgeAgreement(NamedTuple):
    """Agreement of two judges over the pairs that both decided.

    Attributes:
      judges: both names.
      share: of the pairs with one outcome, "a", "b" or "tie".
      low, high: ends of its 95 % interval, by a bootstrap over pairs.
      kappa: Cohen's: 1 for equal judges, 0 for what chance gives; NaN where both always
        say one thing.
      kappa_low, kappa_high: ends of its 95 % interval.
      pairs: that both decided.
      left_out: pairs with an error or a wait of either.
    """

    judges: tuple[str, str]
    share: float
    low: float
    high: float
    kappa: float
    kappa_low: float
    kappa_high: float
    pairs: int
    left_out: int

    def __str__(self) -> str:
        return (
            f"{self.judges[0]} and {self.judges[1]} agree on {100 * self.share:.1f} % of "
            f"{self.pairs} pairs, 95 % interval [{100 * self.low:.1f}, "
            f"{100 * self.high:.1f}]; kappa {self.kappa:.2f} [{self.kappa_low:.2f}, "
            f"{self.kappa_high:.2f}]; {self.left_out} left out"
        )


def judge_agreement(
    a: Judged, b: Judged, *, resamples: int = 2000, seed: int = 0
) -> JudgeAgreement:
    """The share of pairs of which two judges say the same, and Cohen's kappa.

        kappa = (share - chance) / (1 - chance),  chance = sum_c p_a(c) p_b(c)

    Args:
      a: of `compare`.
      b: of `compare`, of the same pairs in the same order.
      resamples: of the bootstrap, at least 100.
      seed: of the bootstrap.

    Returns:
      `JudgeAgreement`.

    Raises:
      ValueError: other pairs, or none that both decided.

    References:
      Cohen, 1960, Educational and Psychological Measurement 20; Zheng et al. 2023,
      arXiv 2306.05685, section 4.2.

    Example:
      >>> from fedjax_fm.evaluation import judges
      >>> pairs = [judges.Pair("2 + 2?", "4", "5", "4")] * 3
      >>> one = judges.compare(judges.exact_judge(), pairs)
      >>> judge_agreement(one, judges.compare(judges.rouge_judge(), pairs)).share
      1.0
    """
    for name, one in (("a", a), ("b", b)):
        checks.instance(name, one, Judged, "write judges.compare(judge, pairs)")
    checks.whole("resamples", resamples, least=100)
    if len(a.outcomes) != len(b.outcomes) or (a.lengths != b.lengths).any():
        raise ValueError(
            f"expected outcomes of the same pairs, got {len(a.outcomes)} and "
            f"{len(b.outcomes)} with their lengths"
        )
    both = [
        (_DECIDED.index(x), _DECIDED.index(y))
        for x, y in zip(a.outcomes, b.outcomes, strict=True)
        if x in _DECIDED and y in _DECIDED
    ]
    if not both:
        raise ValueError(f"no pair was decided by both {a.judge!r} and {b.judge!r}")
    rows = np.array(both)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(rows), size=(resamples, len(rows)))
    shares = (rows[drawn, 0] == rows[drawn, 1]).mean(axis=1)
    kappas = np.array([_kappa(rows[one]) for one in drawn])
    kappa = _kappa(rows)
    ends = _ends(kappas) if kappa == kappa else (kappa, kappa)
    low, high = _ends(shares)
    return JudgeAgreement(
        judges=(a.judge, b.judge),
        share=float((rows[:, 0] == rows[:, 1]).mean()),
        low=low,
        high=high,
        kappa=kappa,
        kappa_low=ends[0],
        kappa_high=ends[1],
        pairs=len(rows),
        left_out=len(a.outcomes) - len(rows),
    )


def _kappa(rows: np.ndarray) -> float:
    """Cohen's kappa of i[n, 2]; NaN where chance alone would always agree."""
    counts = np.stack([np.bincount(column, minlength=3) for column in rows.T])
    p = counts / len(rows)
    chance = float(p[0] @ p[1])
    share = float((rows[:, 0] == rows[:, 1]).mean())
    return (share - chance) / (1 - chance) if chance < 1 else float("nan")


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Ends of the 95 % interval of resampled values, NaN left out."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
