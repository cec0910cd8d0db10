"""Rows of like length together, so that short texts cost what they use and every width compiles once."""

from collections.abc import Iterator, Sequence

import numpy as np

from fedjax_fm import checks


def length_batches(
    attention_mask: np.ndarray, batch_size: int, bucket: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (width, rows, padded): every row of `attention_mask` [n, T] once.

    Args:
      attention_mask: 1 for real tokens, padded on the right.
      bucket: widths are multiples of this, at most T.

    `padded` repeats `rows` up to `batch_size`, so that the last batch of a width has the shape of the others: compute on
    it and keep the first len(rows) results.
    """
    lengths = np.maximum(attention_mask.sum(axis=1), 2)  # a next-token loss needs two positions
    widths = np.minimum(-(-lengths // bucket) * bucket, attention_mask.shape[1])
    for width in np.unique(widths):
        of_width = np.flatnonzero(widths == width)
        for start in range(0, len(of_width), batch_size):
            rows = of_width[start : start + batch_size]
            yield int(width), rows, np.resize(rows, batch_size)


def split_rows(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Each client's part of `values` [n, ...], in which the clients' rows come one after the other.

    Args:
      sizes: rows of each client, n together.

    Raises:
      ValueError: sizes of another sum, or a client without rows, of which there is no mean.
    """
    for client, size in enumerate(sizes):
        checks.whole(f"sizes[{client}]", size, least=0)
    if sum(sizes) != len(values):
        raise ValueError(f"the clients have {sum(sizes)} rows, the results {len(values)}")
    if empty := [client for client, size in enumerate(sizes) if size == 0]:
        raise ValueError(f"clients {empty} have no rows, and no mean over them: leave them out of sizes")
    return np.split(values, np.cumsum(sizes)[:-1])
