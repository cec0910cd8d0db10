"""Arrays of values as people have them: lists, lists of lists, arrays of objects.

Nothing is changed in silence. NumPy makes text of [0, "0"], float64 of [-1, 2**63] and
1 of True; each would make two different values one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_fm import checks

_KINDS = {
    "bool": (bool, np.bool_),
    "int": (int, np.integer),
    "float": (float, np.floating),
    "str": (str,),
    "bytes": (bytes,),
}


def as_array(
    what: str, values: Any, pad: Any = None, cure: str = "pad it with one value"
) -> np.ndarray:
    """`values`, rows first, as an array that holds them as they are.

    Args:
      what: how messages name the values.
      values: an array, or a sequence of numbers, of text, or of such sequences.
      pad: fills rows of unequal length up to the longest, on the right; None refuses
        them.
      cure: what the caller can do about rows of unequal length, for the message.

    Returns:
      [rows, ...]; text and other objects as an array of objects.

    Raises:
      TypeError: no sequence, or a padding that is no number.
      ValueError: missing values, values of several types, ragged rows, a masked array.

    Example:
      >>> as_array("tokens", [[1, 2], [3, 4]]).shape
      (2, 2)
    """
    if pad is not None:
        checks.real(f"pad, the padding of {what},", pad, infinite=True)
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(
            f"{what} is masked, and a mask would be lost; fill it "
            "(array.filled(value)) or drop its rows"
        )
    if isinstance(values, (str, bytes)):
        raise TypeError(f"expected {what} to be one value a row, got one text")
    array = values if isinstance(values, np.ndarray) else _of_sequence(what, values)
    if array.dtype == object and array.ndim == 1 and len(array) and _is_row(array[0]):
        return _of_rows(what, array, pad, cure)
    if pad is not None and array.ndim == 1:
        raise ValueError(
            f"padding (pad=) is for lists of unequal length, {what} has no lists"
        )
    return array


def refuse_missing(what: str, absent: np.ndarray) -> None:
    """Refuses rows without a value.

    Args:
      what: how messages name the values.
      absent: bool[rows], True where there is none.

    Raises:
      ValueError: there is such a row.
    """
    rows = np.flatnonzero(absent)
    if rows.size:
        values = "missing value" if rows.size == 1 else "missing values"
        raise ValueError(
            f"{what} has {rows.size} {values}, the first in row {rows[0]}; fill "
            "them or drop their rows"
        )


def kinds_of(values: Any) -> list[str]:
    """Names of the types of some values, sorted; NumPy's scalars count as Python's.

    Args:
      values: any.
    """
    types = set(map(type, values))
    return sorted({_kind(kind) for kind in types})


def _kind(kind: type) -> str:
    """The name of a type."""
    for name, kinds in _KINDS.items():
        if issubclass(kind, kinds):
            return name
    return kind.__name__


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, NaT, pandas.NA.

    Args:
      value: any.
    """
    if value is None:
        return True
    if isinstance(value, (str, bytes, int, list, dict, np.ndarray)):
        return False
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas.NA is neither equal nor unequal
        return True


def _of_sequence(what: str, values: Any) -> np.ndarray:
    """An array of a sequence's items: of numbers if all are, otherwise of objects."""
    try:
        items = list(values)
    except TypeError:
        raise TypeError(
            f"expected {what} as an array or a list, one row an example, got {values!r}"
        ) from None
    kinds = set(map(type, items))
    array = _of_numbers(items, kinds)
    return _objects(items) if array is None else array


def _of_numbers(items: list[Any], kinds: set[type]) -> np.ndarray | None:
    """An array of numbers or of equal rows; None where NumPy would change them."""
    flags = kinds & {bool, np.bool_}
    no_numbers = str, bytes, type(None)
    if any(issubclass(kind, no_numbers) for kind in kinds):
        return None
    if flags and flags != kinds:
        return None
    try:
        array = np.asarray(items)
    except (ValueError, OverflowError):  # of unequal length
        return None
    whole = all(issubclass(kind, (int, np.integer)) for kind in kinds)
    if array.dtype == object or (array.dtype.kind == "f" and whole and kinds):
        return None
    return array


def _of_rows(what: str, rows: np.ndarray, pad: Any, cure: str) -> np.ndarray:
    """[rows, length, ...] from an array of sequences."""
    if not all(_is_row(row) for row in rows):
        raise ValueError(
            f"{what} mixes types {kinds_of(rows)}, expected values of one type"
        )
    arrays = [as_array(f"{what}, row {k}", row) for k, row in enumerate(rows)]
    lengths = {len(array) for array in arrays}
    dtypes = {array.dtype for array in arrays if len(array)}
    kinds = sorted({str(dtype) for dtype in dtypes})
    if len(kinds) > 1:
        raise ValueError(
            f"{what} mixes rows of {' and '.join(kinds)}; give all its values one type"
        )
    if pad is not None:
        return _padded(what, arrays, max(lengths), pad)
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(
            f"{what} is ragged, its rows have {min(lengths)} to {max(lengths)} "
            f"entries; models.tokenize pads texts, models.pack packs them, {cure}"
        )
    return np.stack(arrays)


def _padded(what: str, arrays: list[np.ndarray], length: int, pad: Any) -> np.ndarray:
    """[rows, length], each row filled up on the right."""
    filled = [array for array in arrays if len(array)]
    if any(array.ndim != 1 for array in filled):
        raise ValueError(
            f"padding (pad=) is for rows of numbers, {what} has rows of shape "
            f"{filled[0].shape}"
        )
    dtype = filled[0].dtype if filled else np.asarray(pad).dtype
    padding = np.asarray(pad).astype(dtype)
    if padding != pad:
        raise ValueError(f"pad={pad} of {what} is no {dtype}, which its rows are of")
    padded = np.full((len(arrays), length), padding)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _objects(items: Sequence[Any]) -> np.ndarray:
    """An array of objects."""
    array = np.empty(len(items), dtype=object)
    for k, item in enumerate(items):
        array[k] = item
    return array


def _is_row(value: Any) -> bool:
    """Whether a value is a row of values."""
    return isinstance(value, (list, tuple)) or (
        isinstance(value, np.ndarray) and value.ndim > 0
    )
