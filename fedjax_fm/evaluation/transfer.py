"""What tasks that are learned in turn do to each other: forgetting and transfer.

Lopez-Paz, Ranzato 2017; Chaudhry, Dokania, Ajanthan, Torr 2018.
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks


class Transfer(NamedTuple):
    """Means over tasks; positive transfer is good whichever way the score goes.

    Attributes:
      average: score of all tasks after the last one.
      backward: what later tasks did to those before them; 0 with one task.
      forgetting: what was lost since each task was at its best, at least 0; 0 with one
        task.
      forward: what the tasks before it did to a task that was not learned yet; NaN
        where that is not known, 0 with one task.
      forgotten: f64[T], the loss of each task; the last one's counts in no mean.
    """

    average: float
    backward: float
    forgetting: float
    forward: float
    forgotten: np.ndarray


def transfer(
    scores: Any, before: Any = None, *, higher_is_better: bool = True
) -> Transfer:
    """Forgetting and transfer of tasks that were learned one after the other.

    With R[t, j] the score on task j after task t, and R[0, j] before any, t and j from 1:

        average    = mean_j R[T, j]
        backward   = mean_{j < T} R[T, j] - R[j, j]
        forgetting = mean_{j < T} max_{t <= T} R[t, j] - R[T, j]
        forward    = mean_{j > 1} R[j - 1, j] - R[0, j]

    Where low scores are good, all three differences have the other sign.

    A maximum over t < T, as Chaudhry et al. write it, is negative where a task is better
    in the end than ever before; with the last row in it, forgetting is then 0.

    Args:
      scores: f64[T, T], row t after task t, column j on task j. NaN stands for what was
        not measured, but for the diagonal and the last row.
      before: f64[T], of the model before all tasks; None: not known.
      higher_is_better: whether a high score is good.

    Returns:
      The means.

    Raises:
      TypeError, ValueError: another shape, or a score that is missing.

    References:
      Lopez-Paz, Ranzato 2017, arXiv 1706.08840, equations 2 to 4. Chaudhry et al. 2018,
      arXiv 1801.10112, equations 3 and 4.

    Example:
      >>> found = transfer([[0.9, 0.5], [0.7, 0.8]], before=[0.1, 0.2])
      >>> found.average, round(found.backward, 2), round(found.forgetting, 2)
      (0.75, -0.2, 0.2)
      >>> round(found.forward, 2)
      0.3
    """
    checks.flag("higher_is_better", higher_is_better)
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not len(table):
        raise ValueError(
            "expected a score of each task after each task, [T, T], got shape "
            f"{list(table.shape)}"
        )
    first = _before(before, len(table))
    last, own = table[-1], np.diag(table)
    if not (np.isfinite(last).all() and np.isfinite(own).all()):
        raise ValueError(
            "expected finite scores after the last task and of each task after it was "
            f"learned, got last row {last.tolist()} and diagonal {own.tolist()}"
        )
    sign = 1.0 if higher_is_better else -1.0
    best = np.nanmax(sign * table, axis=0)
    forgotten = best - sign * last
    ahead = sign * (np.diag(table, k=1) - first[1:])
    return Transfer(
        average=float(last.mean()),
        backward=_mean(sign * (last - own)[:-1]),
        forgetting=_mean(forgotten[:-1]),
        forward=_mean(ahead),
        forgotten=forgotten,
    )


def _before(before: Any, n: int) -> np.ndarray:
    """f64[T], NaN where it is not known."""
    if before is None:
        return np.full(n, np.nan)
    first = np.asarray(before, np.float64)
    if first.shape != (n,):
        raise ValueError(
            f"expected one score a task before all tasks, [{n}], got shape "
            f"{list(first.shape)}"
        )
    return first


def _mean(values: np.ndarray) -> float:
    """The mean; 0 of none."""
    return float(values.mean()) if len(values) else 0.0
