"""How far one client, as often as it may come, moves what a matrix mechanism releases."""

import numpy as np

from fedjax_fm.population.samplers.laws import Spaced

_NOTHING = 1e-12


def sensitivity(strategy: np.ndarray, law: Spaced) -> float:
    """Largest l2 norm of C x over one client's contributions x of norm at most 1 each,
    as often as `law` allows.

    Exact where contributions that may belong to one client do not overlap under C: the
    largest sum of squared column norms over rounds at least `min_separation` apart, by
    dynamic programming.

    Args:
      strategy: C, f64[rows, rounds].
      law: when a client may come again.

    Raises:
      ValueError: they overlap; says what to change.

    References:
      Choquette-Choo et al. 2023, arXiv 2306.08153, section 3.

    Example:
      >>> sensitivity(np.eye(10), Spaced(min_separation=3))  # four rounds
      2.0
    """
    gram = strategy.T @ strategy
    rounds = len(gram)
    far = (
        np.abs(np.subtract.outer(np.arange(rounds), np.arange(rounds)))
        >= law.min_separation
    )
    if (
        _most(rounds, law) > 1
        and np.abs(np.where(far, gram, 0)).max(initial=0) > _NOTHING
    ):
        raise ValueError(
            f"a client's contributions {law.min_separation} rounds apart overlap "
            f"under this noise: use at most {law.min_separation} bands, trees of "
            f"at most {law.min_separation} rounds, or max_participations=1"
        )
    return float(np.sqrt(_largest_sum(np.diag(gram), law)))


def sensitivities(strategy: np.ndarray, law: Spaced) -> np.ndarray:
    """f64[rounds + 1]: the sensitivity of the first t rounds, for every t.

    Row i of C is released in the round of its last entry that is not zero, so after t
    rounds C has the rows whose entries lie there.
    """
    rounds = strategy.shape[1]
    rows, columns = np.nonzero(np.abs(strategy) > _NOTHING)
    first, last = np.full(len(strategy), rounds), np.full(len(strategy), -1)
    np.minimum.at(first, rows, columns)
    np.maximum.at(last, rows, columns)
    apart = (last - first).max(
        initial=0
    ) < law.min_separation  # no row sees a client twice
    found, squares = np.zeros(rounds + 1), np.zeros(rounds)
    for t in range(1, rounds + 1):
        squares += (strategy[last == t - 1] ** 2).sum(axis=0)
        if apart or _most(t, law) == 1:
            found[t] = np.sqrt(_largest_sum(squares[:t], law))
        else:
            found[t] = sensitivity(strategy[last < t, :t], law)
    return found


def _most(rounds: int, law: Spaced) -> int:
    """Participations of one client in so many rounds."""
    fitting = -(-rounds // law.min_separation)
    return (
        fitting
        if law.max_participations is None
        else min(fitting, law.max_participations)
    )


def _largest_sum(squares: np.ndarray, law: Spaced) -> float:
    """The largest sum of entries at least `min_separation` apart, at most
    `max_participations` of them.
    """
    rounds, apart = len(squares), law.min_separation
    if apart == 1:
        return float(np.sort(squares)[::-1][: _most(rounds, law)].sum())
    best = np.zeros(
        rounds + apart
    )  # best[t]: over rounds >= t, with the participations used so far
    for _ in range(_most(rounds, law)):
        taken = squares + best[apart:]
        best = np.concatenate(
            [np.maximum.accumulate(taken[::-1])[::-1], np.zeros(apart)]
        )
    return float(best[0])
