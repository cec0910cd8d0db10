"""Scores of a whole set of predictions: GLUE's Matthews correlation, F1, correlations.

None of them is a mean over examples, so neither is the score of all clients together the
mean of the clients' scores: `by_client` takes them as functions of row numbers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_fm import checks

Agreement = Callable[[Any, Any], float]


def matthews(predictions: Any, labels: Any) -> float:
    """Matthews correlation of predicted and true classes, GLUE's score of CoLA.

        (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))

    with s rows, of which c are right, and p_k, t_k of class k predicted and true; of two
    classes that is Pearson's correlation of both.

    Args:
      predictions: i[n], classes.
      labels: i[n], classes.

    Returns:
      -1 to 1; 0 where all predictions or all labels are of one class.

    Raises:
      TypeError, ValueError: no whole numbers, no rows, or not one prediction a label.

    References:
      Matthews, 1975, Biochimica et Biophysica Acta 405; Gorodkin, 2004, Computational
      Biology and Chemistry 28, equation 8 (several classes).

    Example:
      >>> matthews([0, 1, 1, 0], [0, 1, 0, 0])
      0.5773502691896258
    """
    predicted, true = _pair(predictions, labels, whole=True)
    classes = np.unique(np.concatenate([predicted, true]))
    p = (predicted[:, None] == classes).sum(axis=0).astype(np.float64)
    t = (true[:, None] == classes).sum(axis=0).astype(np.float64)
    s, c = float(len(true)), float((predicted == true).sum())
    spread = (s * s - p @ p) * (s * s - t @ t)
    return float((c * s - p @ t) / np.sqrt(spread)) if spread > 0 else 0.0


def f1(predictions: Any, labels: Any, positive: int = 1) -> float:
    """F1 of one class, GLUE's score of MRPC and QQP: 2 TP / (2 TP + FP + FN).

    Args:
      predictions: i[n], classes.
      labels: i[n], classes.
      positive: the class that counts.

    Returns:
      0 to 1; 0 where the class is neither predicted nor true.

    Raises:
      TypeError, ValueError: as `matthews`.

    References:
      van Rijsbergen, 1979, Information Retrieval, chapter 7.

    Example:
      >>> f1([0, 1, 1, 0], [0, 1, 0, 0])
      0.6666666666666666
    """
    checks.whole("positive", positive)
    predicted, true = _pair(predictions, labels, whole=True)
    is_predicted, is_true = predicted == positive, true == positive
    total = int(is_predicted.sum()) + int(is_true.sum())
    both = int((is_predicted & is_true).sum())
    return 2 * both / total if total else 0.0


def pearson(predictions: Any, targets: Any) -> float:
    """Pearson's correlation, one of GLUE's two scores of STS-B.

    Args:
      predictions: f[n].
      targets: f[n].

    Returns:
      -1 to 1; NaN of fewer than two rows, or where either side is constant.

    Raises:
      TypeError, ValueError: no finite numbers, no rows, or not one prediction a target.

    References:
      Pearson, 1895, Proceedings of the Royal Society 58.

    Example:
      >>> round(pearson([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]), 4)
      0.982
    """
    return _correlation(*_pair(predictions, targets, whole=False))


def spearman(predictions: Any, targets: Any) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing theirs.

    Args:
      predictions: f[n].
      targets: f[n].

    Returns:
      As `pearson`.

    Raises:
      TypeError, ValueError: as `pearson`.

    References:
      Spearman, 1904, American Journal of Psychology 15.

    Example:
      >>> round(spearman([1.0, 2.0, 4.0], [10.0, 20.0, 21.0]), 4)
      1.0
    """
    a, b = _pair(predictions, targets, whole=False)
    return _correlation(_ranks(a), _ranks(b))


def accuracy(predictions: Any, labels: Any) -> float:
    """The share of predictions that are right.

    Args:
      predictions: i[n], classes.
      labels: i[n], classes.

    Returns:
      0 to 1.

    Raises:
      TypeError, ValueError: as `matthews`.

    Example:
      >>> accuracy([0, 1, 1, 0], [0, 1, 0, 0])
      0.75
    """
    predicted, true = _pair(predictions, labels, whole=True)
    return float((predicted == true).mean())


# By the names that the table of benchmarks has for them.
AGREEMENTS: dict[str, Agreement] = {
    "accuracy": accuracy,
    "MCC": matthews,
    "F1": f1,
    "Pearson": pearson,
    "Spearman": spearman,
}


def _pair(
    predictions: Any, targets: Any, *, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of one length, checked."""
    a, b = np.asarray(predictions), np.asarray(targets)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(
            "expected one prediction a target, and at least one, got shapes "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    kinds = "iub" if whole else "iubf"
    for name, values in (("predictions", a), ("targets", b)):
        if values.dtype.kind not in kinds:
            wanted = "classes as whole numbers" if whole else "numbers"
            raise TypeError(f"expected {name} as {wanted}, got {values.dtype}")
        if not np.isfinite(values).all():
            raise ValueError(f"expected finite {name}, got NaN or infinity")
    kind = np.int64 if whole else np.float64
    return a.astype(kind), b.astype(kind)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of f64[n]; NaN where it is not defined."""
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    found = (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(found, -1.0, 1.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values have the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
