"""A lower bound on epsilon from one run, by guessing which canaries were in it.

Steinke, Nasr, Jagielski, 2023, "Privacy Auditing with One (1) Training Run", arXiv
2305.08846. m examples are each in the data by a fair coin; the auditor guesses some of
the coins. If what was released is (epsilon, delta)-private for each of them, then the
number of right guesses among r is at most

    V ~ Bin(r, e^epsilon / (1 + e^epsilon)),   but for a probability of 2 m alpha delta

so that too many right guesses refute that epsilon.
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.intervals import LEVEL
from fedjax_fm.evaluation.leaks.intervals import root_of

CEILING = 50.0  # of the search; no number of guesses that fits into memory reaches it


class LowerBound(NamedTuple):
    """What the guesses refute.

    Attributes:
      epsilon: with 95 % confidence the mechanism is not (epsilon', delta)-private for
        any epsilon' below it; 0 refutes nothing.
      ceiling: what the bound would be if every canary were guessed right.
      delta: of the guarantee that is tested.
      n_correct: right guesses.
      n_guesses: of that many.
      n_canaries: in or out by a coin.
    """

    epsilon: float
    ceiling: float
    delta: float
    n_correct: int
    n_guesses: int
    n_canaries: int


def p_value(
    n_correct: int, n_guesses: int, n_canaries: int, epsilon: float, delta: float = 0.0
) -> float:
    """How probable so many right guesses are at most, of a private mechanism.

        beta = P[V >= v],   alpha = max_i P[v - i <= V < v] / i,
        p = beta + 2 m delta alpha

    Args:
      n_correct: v, from 0 to `n_guesses`.
      n_guesses: r, from 1 to `n_canaries`.
      n_canaries: m.
      epsilon: of the mechanism, at least 0.
      delta: of the mechanism, 0 <= delta < 1.

    Returns:
      p, at most 1.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Steinke, Nasr, Jagielski 2023, arXiv 2305.08846, theorem 5.2 and appendix D.

    Example:
      >>> p_value(10, 10, 10, epsilon=0.0)  # ten heads in a row
      0.0009765625
    """
    from scipy import stats  # takes half a second to import

    checks.whole("n_canaries", n_canaries, least=1)
    checks.whole("n_guesses", n_guesses, least=1, most=n_canaries)
    checks.whole("n_correct", n_correct, least=0, most=n_guesses)
    checks.real("epsilon", epsilon, least=0)
    checks.real("delta", delta, least=0, below=1)
    right = 1 / (1 + np.exp(-float(epsilon)))
    beta = float(stats.binom.sf(n_correct - 1, n_guesses, right))
    if delta == 0 or n_correct == 0:
        return min(beta, 1.0)
    below = np.arange(n_correct - 1, -1, -1)
    shares = np.cumsum(stats.binom.pmf(below, n_guesses, right))
    alpha = float((shares / np.arange(1, n_correct + 1)).max())
    return min(beta + 2 * n_canaries * delta * alpha, 1.0)


def epsilon_of_guesses(
    n_correct: int,
    n_guesses: int,
    n_canaries: int,
    *,
    delta: float = 0.0,
    level: float = LEVEL,
) -> float:
    """The largest epsilon that so many right guesses refute.

    Args:
      n_correct: right guesses.
      n_guesses: of that many, a number that was fixed before the guesses were judged.
      n_canaries: in or out by a coin.
      delta: of the guarantee that is tested.
      level: probability of refuting what holds, 0 < level < 1.

    Returns:
      epsilon with p = level; 0 if not even that is refuted.

    Raises:
      TypeError, ValueError: a number out of bounds.

    References:
      Steinke, Nasr, Jagielski 2023, arXiv 2305.08846, section 5.

    Example:
      >>> round(epsilon_of_guesses(100, 100, 100), 2)  # all right
      3.49
    """
    checks.real("level", level, above=0, below=1)

    def excess(epsilon: float) -> float:
        return p_value(n_correct, n_guesses, n_canaries, epsilon, delta) - level

    if excess(0.0) > 0:
        return 0.0
    return root_of(excess, 0.0, CEILING)


def one_run_epsilon(scores: Any, is_in: Any, *, delta: float = 0.0) -> LowerBound:
    """A lower bound on epsilon from the scores of canaries, by one run.

    The highest scores are guessed to be in, as many of the lowest to be out, and the
    rest is left open. How many guesses are best is not known before: a quarter, a half
    and all of the canaries are tried, each at a third of the level.

    Args:
      scores: f64[m], of each canary after the run; a larger one says "in".
      is_in: bool[m], fair and independent coins that the run has used.
      delta: of the guarantee that is tested, 0 <= delta < 1.

    Returns:
      The bound, at a confidence of 95 %.

    Raises:
      TypeError, ValueError: fewer than two canaries, scores that are not finite, coins
        that are none.

    References:
      Steinke, Nasr, Jagielski 2023, arXiv 2305.08846, algorithm 1.

    Example:
      >>> coins = np.arange(64) % 2 == 0
      >>> found = one_run_epsilon(np.where(coins, 1.0, -1.0), coins)
      >>> found.n_correct, found.epsilon == found.ceiling
      (64, True)
      >>> one_run_epsilon(np.arange(64) % 4 < 2, coins).epsilon
      0.0
    """
    checks.real("delta", delta, least=0, below=1)
    found, coins = np.asarray(scores, np.float64), np.asarray(is_in)
    if found.ndim != 1 or len(found) < 2 or coins.shape != found.shape:
        raise ValueError(
            "expected one score and one coin of two canaries or more, got shapes "
            f"{list(found.shape)} and {list(coins.shape)}"
        )
    if coins.dtype != bool or not np.isfinite(found).all():
        raise ValueError(
            f"expected coins as bool and finite scores, got coins of {coins.dtype}"
        )
    m = len(found)
    sides = sorted({max(1, m // 8), max(1, m // 4), m // 2})
    level = LEVEL / len(sides)
    bounds = [_bound(found, coins, side, delta, level) for side in sides]
    return max(bounds, key=_epsilon)


def _epsilon(bound: LowerBound) -> float:
    return bound.epsilon


def _bound(
    scores: np.ndarray, coins: np.ndarray, side: int, delta: float, level: float
) -> LowerBound:
    """The bound by that many guesses on either side."""
    order, m = np.argsort(scores, kind="stable"), len(scores)
    inside, outside = order[m - side :], order[:side]
    n_correct = int(coins[inside].sum() + (~coins[outside]).sum())
    n_guesses = len(inside) + len(outside)
    how = {"delta": delta, "level": level}
    return LowerBound(
        epsilon=epsilon_of_guesses(n_correct, n_guesses, m, **how),
        ceiling=epsilon_of_guesses(n_guesses, n_guesses, m, **how),
        delta=delta,
        n_correct=n_correct,
        n_guesses=n_guesses,
        n_canaries=m,
    )
