"""Rows of like length together, so that short texts cost what they use and every width compiles once."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedjax_fm import checks


def length_batches(
    attention_mask: np.ndarray, batch_size: int, bucket: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (width, rows, padded): every row of `attention_mask` [n, T] once.

    Args:
      attention_mask: 1 for real tokens; a row is cut behind its last one, wherever its padding is.
      bucket: widths are multiples of this, at most T.

    `padded` repeats `rows` up to `batch_size`, so that the last batch of a width has the shape of the others: compute on
    it and keep the first len(rows) results.
    """
    places = np.arange(1, attention_mask.shape[1] + 1)
    ends = np.where(attention_mask != 0, places, 0).max(axis=1, initial=0)
    lengths = np.maximum(ends, 2)  # a next-token loss needs two positions
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


def checked_arrays(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> int:
    """n, the rows of each of these arrays.

    Raises:
      ValueError: there are none, not as many in each, or whole numbers that 32 bits do not hold, as devices would read
        others in their place.
    """
    sizes = {name: len(arrays[name]) for name in names}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected as many rows in each array, got {sizes}")
    n = next(iter(sizes.values()))
    if n == 0:
        raise ValueError("nothing to evaluate: the arrays have no rows")
    for name in names:
        array, limits = np.asarray(arrays[name]), np.iinfo(np.int32)
        if not np.issubdtype(array.dtype, np.integer) or array.dtype.itemsize <= 4 or not array.size:
            continue
        for value in (array.min(), array.max()):
            if not limits.min <= value <= limits.max:
                raise ValueError(f"expected whole numbers of 32 bits in {name}, got {value}")
    return n
