"""Batches of rows of similar length.

A batch is cut to the length of its rows, so short texts cost less than long ones. Each
width compiles once.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from fedjax_fm import checks


def length_batches(
    attention_mask: np.ndarray, batch_size: int, bucket: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields batches of rows whose lengths round up to the same width.

    A row is as long as the place of its last real token: padding on the left or in the
    middle is kept, and only padding on the right makes a row cheap.

    Args:
      attention_mask: i32[n, T]; not 0 for real tokens.
      batch_size: rows in a batch.
      bucket: tokens; widths are multiples of it, at most T.

    Yields:
      (width, rows, padded): the batch's width in tokens, its row numbers i64[m], and
      the same numbers repeated up to i64[batch_size], so that all batches of a width
      have one shape. Compute on `padded` and keep the first m results. Every row of
      `attention_mask` comes once among the `rows`.

    Raises:
      TypeError: `batch_size` or `bucket` is not a whole number.
      ValueError: one of them is below 1, or the mask is not [n, T].

    Example:
      >>> mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
      >>> for width, rows, padded in length_batches(mask, batch_size=2, bucket=2):
      ...     print(width, rows, padded)
      2 [0 2] [0 2]
      4 [1] [1 1]
    """
    checks.whole("batch_size", batch_size, least=1)
    checks.whole("bucket", bucket, least=1)
    attention_mask = np.asarray(attention_mask)
    if attention_mask.ndim != 2:
        raise ValueError(
            f"expected attention_mask of shape [n, T], got {attention_mask.shape}"
        )
    longest = attention_mask.shape[1]
    places = np.arange(1, longest + 1)
    ends = np.max((attention_mask != 0) * places, axis=1, initial=0)
    lengths = np.maximum(ends, 2)  # a next-token loss needs two positions
    widths = np.minimum(-(-lengths // bucket) * bucket, longest)
    for width in np.unique(widths):
        of_width = np.flatnonzero(widths == width)
        for start in range(0, len(of_width), batch_size):
            rows = of_width[start : start + batch_size]
            yield int(width), rows, np.resize(rows, batch_size)


def check_rows(arrays: Mapping[str, np.ndarray]) -> int:
    """Returns the number of rows, the same for all arrays.

    Args:
      arrays: {column: [n, ...]}.

    Returns:
      n.

    Raises:
      ValueError: there are no arrays or no rows, or the arrays differ in length.
    """
    if not arrays:
        raise ValueError("nothing to evaluate: there are no arrays")
    lengths = {name: len(array) for name, array in arrays.items()}
    distinct = set(lengths.values())
    if len(distinct) != 1:
        raise ValueError(
            "expected arrays of equal length, one row an example, got lengths "
            f"{lengths}"
        )
    (n,) = distinct
    if n == 0:
        raise ValueError("nothing to evaluate: the arrays have no rows")
    return n


def doubling_batches(
    lengths: np.ndarray, batch_size: int, most: int, least: int = 16
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields batches of rows whose lengths round up to the same power of two.

    The longest rows come first, so that what does not fit into memory shows at once.

    Args:
      lengths: i64[n], tokens of each row, at most `most`.
      batch_size: rows in a batch.
      most: tokens; the widest batch, whether or not it is a power of two.
      least: tokens; the narrowest batch, where `most` is not less.

    Yields:
      (width, rows, padded), as `length_batches` does.

    Raises:
      TypeError: an argument is not a whole number.
      ValueError: one is below 1, or a row is longer than `most`.

    Example:
      >>> lengths = np.array([3, 40, 17])
      >>> for width, rows, padded in doubling_batches(lengths, batch_size=2, most=50):
      ...     print(width, rows, padded)
      50 [1] [1 1]
      32 [2] [2 2]
      16 [0] [0 0]
    """
    checks.whole("batch_size", batch_size, least=1)
    checks.whole("most", most, least=1)
    checks.whole("least", least, least=1)
    lengths = np.asarray(lengths, np.int64)
    if (lengths > most).any():
        raise ValueError(f"a row has {lengths.max()} tokens; at most {most} are read")
    doubled = [1 << max(int(n) - 1, 0).bit_length() for n in lengths]
    widths = np.clip(np.array(doubled, np.int64), min(least, most), most)
    for width in np.unique(widths)[::-1]:
        of_width = np.flatnonzero(widths == width)
        longest_first = np.argsort(-lengths[of_width], kind="stable")
        of_width = of_width[longest_first]
        for start in range(0, len(of_width), batch_size):
            rows = of_width[start : start + batch_size]
            yield int(width), rows, np.resize(rows, batch_size)
