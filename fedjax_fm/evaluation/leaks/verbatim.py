"""Data that lie in an upload as they are, up to a factor and a shift."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_fm import checks
from fedjax_fm.types import Tree

LEAST = 12  # values; fewer are found by chance


class Copy(NamedTuple):
    """A piece of a client's data in its upload.

    Attributes:
      column: of the data.
      example: number of the row.
      leaf: path of the upload's leaf.
      correlation: of the two pieces, 1 or -1 for a copy.
    """

    column: str
    example: int
    leaf: str
    correlation: float


def copies_in_upload(
    upload: Tree,
    batch: Mapping[str, Any],
    *,
    length: int = 32,
    least: float = 0.999,
) -> list[Copy]:
    """Looks for pieces of a client's examples in what it sends.

    The first values of each example are slid along each flat leaf, and correlated with
    what lies there. Copies behind a factor, a shift or a little noise are found; those
    that are permuted, cut into pieces or encrypted are not.

    Args:
      upload: floating or whole leaves, of one client.
      batch: {column: [B, ...]} of the client. Examples of fewer than 12 different
        places, or of one value, are passed over.
      length: values of a piece, at least 12.
      least: correlation of a copy, in absolute value, above 0.99 and below 1: at 12
        values it happens by chance once in 10^12.

    Returns:
      The best place of each example that is found, in order.

    Raises:
      TypeError, ValueError: numbers out of bounds.

    Example:
      >>> random = np.random.default_rng(0)
      >>> tokens, weights = random.integers(0, 99, (2, 20)), random.normal(size=500)
      >>> copies_in_upload({"w": weights}, {"input_ids": tokens})
      []
      >>> weights[300:320] = 0.01 * tokens[1] - 3
      >>> [(one.example, one.leaf) for one in
      ...     copies_in_upload({"w": weights}, {"input_ids": tokens})]
      [(1, "['w']")]
    """
    checks.whole("length", length, least=LEAST)
    checks.real("least", least, above=0.99, below=1)
    leaves = [
        (jax.tree_util.keystr(path), np.asarray(leaf, np.float64).ravel())
        for path, leaf in jax.tree.leaves_with_path(upload)
    ]
    found = []
    for column, rows in batch.items():
        values = np.asarray(rows, np.float64)
        for example, row in enumerate(values.reshape(len(values), -1)):
            piece = row[:length]
            if len(piece) < LEAST or np.ptp(piece) == 0:
                continue
            each = [(*_best(piece, leaf), name) for name, leaf in leaves]
            size, signed, name = max(each, default=(0.0, 0.0, ""))
            if size >= least:
                found.append(
                    Copy(column=column, example=example, leaf=name, correlation=signed)
                )
    return found


def _best(piece: np.ndarray, leaf: np.ndarray) -> tuple[float, float]:
    """(largest absolute correlation of the piece with a window, with its sign)."""
    from scipy import signal

    n = len(piece)
    if len(leaf) < n:
        return 0.0, 0.0
    shape = piece - piece.mean()
    shape = shape / np.linalg.norm(shape)
    spread = leaf - leaf.mean()
    products = signal.fftconvolve(spread, shape[::-1], mode="valid")
    place = _rough(products, spread, n)
    windows = np.stack([leaf[k : k + n] for k in place])  # exactly, where it may be
    centred = windows - windows.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(centred, axis=1)
    found = centred @ shape / np.where(sizes > 0, sizes, 1.0)
    best = int(np.abs(found).argmax())
    return float(abs(found[best])), float(found[best])


def _rough(products: np.ndarray, spread: np.ndarray, n: int) -> np.ndarray:
    """Places of the eight largest correlations, to the rounding of running sums."""
    ones = np.concatenate([[0.0], np.cumsum(spread)])
    squares = np.concatenate([[0.0], np.cumsum(spread**2)])
    sums, of_squares = ones[n:] - ones[:-n], squares[n:] - squares[:-n]
    variance = np.maximum(of_squares - sums**2 / n, 1e-12 * squares[-1] / len(spread))
    score = np.abs(products) / np.sqrt(np.where(variance > 0, variance, 1.0))
    return np.argsort(score)[-8:]
