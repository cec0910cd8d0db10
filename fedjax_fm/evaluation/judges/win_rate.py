"""Win rates, with lengths beside them, and what is left when lengths are equal."""

from typing import NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.judges.compare import Judged

_VALUES = {"a": 1.0, "tie": 0.5, "b": 0.0}
_RIDGE = 1e-6  # keeps the fit finite where every pair goes one way


class WinRate(NamedTuple):
    """How often a wins, as one judge sees it.

    Attributes:
      judge: its name.
      wins: pairs that a wins in both orders.
      losses: pairs that b wins in both orders.
      ties: all others with two verdicts.
      errors: pairs about which the judge gave none.
      waiting: pairs that it could not be asked about.
      rate: (wins + ties / 2) / decided pairs; NaN without any.
      low, high: ends of its 95 % interval, by a bootstrap over pairs.
      strict: wins / decided pairs, FastChat's win rate.
      controlled: the rate at equal lengths, see `length_controlled`.
      length_a, length_b: mean lengths of the answers to the decided pairs.
      unit: of the lengths.
      first: share of decided pairs in which whatever was shown first won twice.
    """

    judge: str
    wins: int
    losses: int
    ties: int
    errors: int
    waiting: int
    rate: float
    low: float
    high: float
    strict: float
    controlled: float
    length_a: float
    length_b: float
    unit: str
    first: float

    def __str__(self) -> str:
        decided = self.wins + self.losses + self.ties
        return (
            f"win rate {100 * self.rate:.1f} %, 95 % interval [{100 * self.low:.1f}, "
            f"{100 * self.high:.1f}], at equal lengths {100 * self.controlled:.1f} %, "
            f"over {decided} pairs ({self.wins} won, {self.ties} ties, {self.losses} "
            f"lost; {self.errors} errors and {self.waiting} waiting apart); mean length "
            f"{self.length_a:.1f} against {self.length_b:.1f} {self.unit}; first shown "
            f"won twice in {100 * self.first:.1f} %; judge: {self.judge}"
        )


def win_rate(judged: Judged, *, resamples: int = 2000, seed: int = 0) -> WinRate:
    """The win rate of a, of the pairs that the judge decided in both orders.

    Args:
      judged: of `compare`.
      resamples: of the bootstrap, at least 100.
      seed: of the bootstrap.

    Returns:
      `WinRate`, whose text has the lengths beside the rate.

    Raises:
      TypeError, ValueError: it is not what `compare` gives.

    References:
      Zheng et al. 2023, arXiv 2306.05685, section 4; Efron, 1979, Annals of Statistics
      7, for the bootstrap.

    Example:
      >>> from fedjax_fm.evaluation import judges
      >>> pair = judges.Pair(prompt="2 + 2?", a="4", b="No idea", reference="4")
      >>> found = win_rate(judges.compare(judges.exact_judge(), [pair]))
      >>> found.rate, found.length_a, found.length_b
      (1.0, 1.0, 2.0)
    """
    checks.instance("judged", judged, Judged, "write judges.compare(judge, pairs)")
    checks.whole("resamples", resamples, least=100)
    counts = {name: judged.outcomes.count(name) for name in ("error", "waiting")}
    values, lengths = decided(judged)
    low, high = _interval(values, resamples, seed)
    mean = lengths.mean(axis=0) if len(values) else np.full(2, np.nan)
    return WinRate(
        judge=judged.judge,
        wins=int((values == 1).sum()),
        losses=int((values == 0).sum()),
        ties=int((values == 0.5).sum()),
        errors=counts["error"],
        waiting=counts["waiting"],
        rate=float(values.mean()) if len(values) else float("nan"),
        low=low,
        high=high,
        strict=float((values == 1).mean()) if len(values) else float("nan"),
        controlled=length_controlled(values, lengths),
        length_a=float(mean[0]),
        length_b=float(mean[1]),
        unit=judged.unit,
        first=judged.first,
    )


def length_controlled(values: np.ndarray, lengths: np.ndarray) -> float:
    """The win rate that is left at equal lengths.

        P(a wins) = sigma(theta + phi tanh(d / sd(d))),   d = length of a - of b

    fitted by maximum likelihood, ties counting half, and read at d = 0. A prompt's own
    difficulty is not in it, as it is in AlpacaEval's, which has many models.

    Args:
      values: f64[n], 1 for a win, 0.5 for a tie, 0 for a loss.
      lengths: f64[n, 2].

    Returns:
      The rate, 0 to 1; NaN without a pair.

    References:
      Dubois et al. 2024, arXiv 2404.04475, section 3.

    Example:
      >>> values, lengths = np.array([1.0, 0.0]), np.array([[5.0, 5.0], [7.0, 7.0]])
      >>> round(length_controlled(values, lengths), 3)
      0.5
    """
    from scipy import optimize, special  # takes half a second to import

    if not len(values):
        return float("nan")
    longer = np.subtract(*np.asarray(lengths, np.float64).T)
    spread = longer.std()
    x = np.tanh(longer / spread) if spread > 0 else np.zeros(len(values))

    def loss(weights: np.ndarray) -> float:
        z = weights[0] + weights[1] * x
        fit = -(values * special.log_expit(z) + (1 - values) * special.log_expit(-z))
        return float(fit.mean() + _RIDGE * np.sum(weights**2))

    found = optimize.minimize(loss, np.zeros(2), method="BFGS", tol=1e-9)
    return float(special.expit(found.x[0]))


def decided(judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Pairs with two verdicts, as numbers.

    Args:
      judged: of `compare`.

    Returns:
      (f64[m]: 1 for a win of a, 0.5 for a tie, 0 for a loss; lengths f64[m, 2]).
    """
    rows = [i for i, outcome in enumerate(judged.outcomes) if outcome in _VALUES]
    values = np.array([_VALUES[judged.outcomes[i]] for i in rows], np.float64)
    return values, judged.lengths[rows]


def _interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Ends of the 95 % interval of the mean; NaN without a value."""
    if not len(values):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
