"""Rows of like length together, so that short texts cost what they use and every width
compiles once.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedjax_fm import checks


def length_batches(
    attention_mask: np.ndarray, batch_size: int, bucket: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (width, rows, padded): every row of `attention_mask` [n, T] once.

    Args:
      attention_mask: not 0 for real tokens. Padding on the right makes short rows
        cheap; with padding elsewhere a row is as wide as its last real token is far.
      batch_size: rows a batch.
      bucket: widths are multiples of this, at most T.

    Raises:
      TypeError, ValueError: a mask that is not [n, T], a batch size or a bucket that is
        no whole number >= 1.

    `padded` repeats `rows` up to `batch_size`, so that the last batch of a width has
    the shape of the others: compute on it and keep the first len(rows) results.
    """
    check_batches(batch_size, bucket)
    attention_mask = np.asarray(attention_mask)
    if attention_mask.ndim != 2:
        raise ValueError(
            f"expected attention_mask of shape [n, T], got {attention_mask.shape}"
        )
    ends = np.max(
        (attention_mask != 0) * np.arange(1, attention_mask.shape[1] + 1),
        axis=1,
        initial=0,
    )
    lengths = np.maximum(ends, 2)  # a next-token loss needs two positions
    widths = np.minimum(-(-lengths // bucket) * bucket, attention_mask.shape[1])
    for width in np.unique(widths):
        of_width = np.flatnonzero(widths == width)
        for start in range(0, len(of_width), batch_size):
            rows = of_width[start : start + batch_size]
            yield int(width), rows, np.resize(rows, batch_size)


def check_batches(batch_size: int, bucket: int) -> None:
    """Raises unless both are whole numbers >= 1."""
    checks.whole("batch_size", batch_size, least=1)
    checks.whole("bucket", bucket, least=1)


def check_rows(
    arrays: Mapping[str, np.ndarray], needed: Sequence[str] = ("attention_mask",)
) -> int:
    """Rows of all arrays.

    Raises:
      ValueError: an array that is needed is not there; no rows, or arrays of other
        lengths: rows that nobody scored would count as wrong.
    """
    missing = sorted(set(needed) - set(arrays))
    if missing:
        raise ValueError(
            f"expected arrays {', '.join(needed)}, got {', '.join(arrays)}: "
            f"{', '.join(missing)} missing"
        )
    if not arrays:
        raise ValueError("nothing to evaluate: there are no arrays")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"expected arrays of equal length, one row an example, got lengths {lengths}"
        )
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError("nothing to evaluate: the arrays have no rows")
    return n


def split_by_client(
    sizes: Sequence[int] | np.ndarray, n_rows: int, *arrays: np.ndarray
) -> list[list[np.ndarray]]:
    """Cuts arrays over the rows of all clients, one client after the other, into those of each.

    Args:
      sizes: rows of each client, 0 allowed; they add up to `n_rows`.
      n_rows: rows of each array.

    Returns:
      For each array a list over the clients.

    Raises:
      TypeError, ValueError: sizes that are no whole numbers >= 0 or do not add up.
    """
    if isinstance(sizes, (str, bytes)) or np.ndim(sizes) != 1 or len(sizes) == 0:  # type: ignore[arg-type]
        raise TypeError(
            f"expected sizes as a list, rows of each client, got sizes={sizes!r}"
        )
    for k, size in enumerate(sizes):
        checks.whole(f"sizes[{k}]", size, least=0)
    whole = [int(size) for size in sizes]
    if sum(whole) != n_rows:
        raise ValueError(
            f"the clients' sizes add up to {sum(whole)} rows, the results {n_rows}"
        )
    places = np.cumsum(whole)[:-1]
    return [np.split(array, places) for array in arrays]
