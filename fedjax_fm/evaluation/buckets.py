"""Rows of like length together, so that short texts cost what they use and every width compiles once."""

from collections.abc import Iterator

import numpy as np


def length_batches(
    attention_mask: np.ndarray, batch_size: int, bucket: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (width, rows, padded): every row of `attention_mask` [n, T] once.

    Args:
      attention_mask: 1 for real tokens (1, 2, ... by text in packed rows), padded on the right.
      batch_size: rows of a batch.
      bucket: widths are multiples of this, at most T.

    Raises:
      ValueError: a row with padding on the left or inside, of which tokens would be cut off.

    `padded` repeats `rows` up to `batch_size`, so that the last batch of a width has the shape of the others: compute on
    it and keep the first len(rows) results.
    """
    real = np.asarray(attention_mask) != 0
    lengths = real.sum(axis=1)
    gaps = (real != (np.arange(real.shape[1]) < lengths[:, None])).any(axis=1)
    if gaps.any():
        raise ValueError(f"row {int(gaps.argmax())} of attention_mask is not padded on the right; expected 1s, then 0s")
    lengths = np.maximum(lengths, 2)  # a next-token loss needs two positions
    widths = np.minimum(-(-lengths // bucket) * bucket, attention_mask.shape[1])
    for width in np.unique(widths):
        of_width = np.flatnonzero(widths == width)
        for start in range(0, len(of_width), batch_size):
            rows = of_width[start : start + batch_size]
            yield int(width), rows, np.resize(rows, batch_size)
