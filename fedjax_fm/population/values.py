"""Checks of a population's arrays: numbers that reach a device as they are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.population.column_values import (
    as_array,
    is_missing,
    kinds_of,
    refuse_missing,
)

# Values checked at a time, so that a file of many gigabytes is never in memory.
CHUNK = 1 << 20

_WIDEST = {"f": 8, "c": 16}  # bytes; NumPy has long doubles, JAX has none


def checked_array(name: Any, values: Any) -> np.ndarray:
    """`values` as an array [n, ...] of numbers that a device holds as they are.

    Without 64-bit types JAX makes int32 of int64: an integer that does not fit would
    become another one, and a finite float64 beyond float32 would become infinite. Such
    arrays are read once, in chunks; others are not read.

    Args:
      name: of the array.
      values: an array, left as it is (memory-mapped ones, too), or a list of numbers or
        of rows of equal length.

    Returns:
      The array.

    Raises:
      TypeError: a name that is no text.
      ValueError: text, objects, dates, records, a number out of range, an array without
        axes, ragged lists.

    Example:
      >>> checked_array("label", np.array([0, 2**32 + 1]))
      Traceback (most recent call last):
      ...
      ValueError: array 'label' holds 4294967297, which a device's int32 cannot; ...
    """
    array = checked_form(name, values, f"array {name!r}")
    _check_range(f"array {name!r}", array)
    return array


def checked_form(name: Any, values: Any, what: str) -> np.ndarray:
    """`values` as an array [n, ...] of numbers, of whatever size they are.

    Args:
      name: of the array.
      values: an array, or a list of numbers or of rows of equal length.
      what: how messages call it.

    Raises:
      TypeError: a name that is no text.
      ValueError: text, objects, dates, records, an array without axes, ragged lists.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"expected arrays named by text, got the name {name!r}")
    if hasattr(values, "__array__") and not isinstance(values, np.ndarray):
        values = np.asarray(values)
    array = (
        values if type(values) in (np.ndarray, np.memmap) else as_array(what, values)
    )
    if array.ndim == 0:
        raise ValueError(f"{what} needs one row an example, got one value of shape ()")
    _check_dtype(what, array)
    return array


def _check_dtype(what: str, array: np.ndarray) -> None:
    """Raises ValueError unless JAX has this dtype, or a narrower one of its kind."""
    dtype = array.dtype
    if dtype.kind == "O":
        absent = map(is_missing, array.reshape(-1))
        refuse_missing(what, np.fromiter(absent, bool, array.size))
    if dtype.kind in "USTO":
        raise ValueError(_not_numbers(what, array))
    if dtype.names:
        raise ValueError(
            f"{what} is structured; pass its fields {list(dtype.names)} as arrays of "
            "their own"
        )
    if dtype.kind in "mM":
        raise ValueError(
            f"{what} holds dates ({dtype}); make numbers of them, with .astype or "
            "a difference of two"
        )
    if not dtype.isnative:
        raise ValueError(
            f"{what} has a foreign byte order ({dtype.str}); call "
            f".astype({dtype.newbyteorder('=').name!r})"
        )
    known = dtype.kind == "b" or jnp.issubdtype(dtype, np.number)
    if not known or dtype.itemsize > _WIDEST.get(dtype.kind, dtype.itemsize):
        raise ValueError(
            f"{what} has dtype {dtype}, which no device has; call .astype(np.float32)"
        )


def _not_numbers(what: str, array: np.ndarray) -> str:
    """A message about text and objects: what to do about them."""
    kinds = kinds_of(array.reshape(-1)) if array.dtype == object else ["str"]
    if set(kinds) <= {"str", "bytes"} and (kinds or array.dtype != object):
        return (
            f"{what} holds text ({array.dtype}), expected numbers: tokenize it "
            "(models.tokenize), number labels (np.unique(..., "
            "return_inverse=True)), or leave it out"
        )
    return (
        f"{what} holds Python objects ({', '.join(kinds) or 'none'}), expected "
        "numbers: pad lists to one length and stack them, fill or drop what is "
        "missing, call .astype on numbers, or leave it out"
    )


def _check_range(what: str, array: np.ndarray) -> None:
    """Raises ValueError for a value that JAX's dtype for it would change."""
    dtype = array.dtype
    target = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    if target == dtype or array.size == 0:
        return
    rows = max(1, CHUNK * len(array) // array.size)
    for start in range(0, len(array), rows):
        wrong = _first_out_of_range(array[start : start + rows], target)
        if wrong is not None:
            cure = "renumber such values" if dtype.kind in "iu" else "scale them"
            raise ValueError(
                f"{what} holds {wrong}, which a device's {target} cannot; {cure}, "
                "leave the array out, or enable jax_enable_x64 before the "
                "population is made"
            )


def _first_out_of_range(part: np.ndarray, target: np.dtype) -> Any:
    """The first value of `part` that `target` cannot hold, or None."""
    if target.kind in "iu":
        limits = np.iinfo(target)
        wrong = (part < limits.min) | (part > limits.max)
    else:
        with np.errstate(over="ignore"):
            narrow = part.astype(target)
        wrong = np.isfinite(part) & ~np.isfinite(narrow)
    return part[wrong][0] if wrong.any() else None
