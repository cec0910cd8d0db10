"""How far one client moves what a matrix mechanism releases, over all its rounds."""

import numpy as np

from fedjax_fm.population.samplers.laws import Spaced

_NOTHING = 1e-12


def sensitivity(strategy: np.ndarray, law: Spaced) -> float:
    """The largest l2 norm of C x over all contributions x of one client.

    Each contribution has norm at most 1, and there are as many as `law` allows. Exact
    where contributions that may belong to one client do not overlap under C: the
    largest sum of squared column norms over rounds at least `min_separation` apart, by
    dynamic programming.

    Args:
      strategy: C, f64[rows, rounds].
      law: when a client may come again.

    Returns:
      A float, in clip norms.

    Raises:
      ValueError: contributions overlap; the message says what to change.

    References:
      Choquette-Choo et al. 2023, arXiv 2306.08153, section 3.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import privacy
      >>> from fedjax_fm.population.samplers.laws import Spaced
      >>> privacy.sensitivity(np.eye(10), Spaced(min_separation=3))  # four rounds
      2.0
    """
    gram = strategy.T @ strategy
    rounds = len(gram)
    numbers = np.arange(rounds)
    distance = np.abs(np.subtract.outer(numbers, numbers))
    overlap = np.where(distance >= law.min_separation, gram, 0)
    largest = np.abs(overlap).max(initial=0)
    if _most(rounds, law) > 1 and largest > _NOTHING:
        raise ValueError(
            f"a client's contributions {law.min_separation} rounds apart overlap "
            f"under this noise: use at most {law.min_separation} bands, trees of "
            f"at most {law.min_separation} rounds, or max_participations=1"
        )
    squares = np.diag(gram)
    return float(np.sqrt(_largest_sum(squares, law)))


def sensitivities(strategy: np.ndarray, law: Spaced) -> np.ndarray:
    """f64[rounds + 1]: the sensitivity of the first t rounds, for every t.

    Row i of C is released in the round of its last entry that is not zero, so after t
    rounds C has the rows whose entries lie there.

    Args:
      strategy: C, f64[rows, rounds].
      law: when a client may come again.

    Raises:
      ValueError: contributions overlap.
    """
    rounds = strategy.shape[1]
    rows, columns = np.nonzero(np.abs(strategy) > _NOTHING)
    n_rows = len(strategy)
    first, last = np.full(n_rows, rounds), np.full(n_rows, -1)
    np.minimum.at(first, rows, columns)
    np.maximum.at(last, rows, columns)
    # Whether no row sees a client twice.
    apart = (last - first).max(initial=0) < law.min_separation
    found, squares = np.zeros(rounds + 1), np.zeros(rounds)
    for t in range(1, rounds + 1):
        squares += (strategy[last == t - 1] ** 2).sum(axis=0)
        if apart or _most(t, law) == 1:
            found[t] = np.sqrt(_largest_sum(squares[:t], law))
        else:
            found[t] = sensitivity(strategy[last < t, :t], law)
    return found


def _most(rounds: int, law: Spaced) -> int:
    """The most participations of one client in a number of rounds."""
    fitting = -(-rounds // law.min_separation)
    if law.max_participations is None:
        return fitting
    return min(fitting, law.max_participations)


def _largest_sum(squares: np.ndarray, law: Spaced) -> float:
    """The largest sum of entries that one client may have.

    Entries at least `min_separation` apart, at most `max_participations` of them.
    """
    rounds, apart = len(squares), law.min_separation
    most = _most(rounds, law)
    if apart == 1:
        largest_first = np.sort(squares)[::-1]
        return float(largest_first[:most].sum())
    # best[t]: over rounds >= t, with the participations used so far.
    best = np.zeros(rounds + apart)
    for _ in range(most):
        taken = squares + best[apart:]
        from_t_on = np.maximum.accumulate(taken[::-1])[::-1]
        best = np.concatenate([from_t_on, np.zeros(apart)])
    return float(best[0])
