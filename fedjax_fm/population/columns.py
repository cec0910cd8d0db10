"""Reads columns of the tables that people have, without importing their libraries.

A table is anything with named columns of equal length: a dict of arrays or lists, a
NumPy structured array, a `fedjax_fm.datasets.Table`, a pandas or polars frame, a
`pyarrow.Table` or `RecordBatch`, a `datasets.Dataset`. Each is known by what it can do.
Only the columns that are asked for are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sized
from typing import Any

import numpy as np

from fedjax_fm.datasets.table import Table, unknown_column_error
from fedjax_fm.population.column_values import as_array, is_missing, refuse_missing

# As listed above; no annotation can name classes of libraries that are not installed.
TableLike = Any

_EXPECTED = (
    "expected a table with named columns (a dict of arrays, a NumPy structured "
    "array, a pandas or polars frame, a pyarrow.Table, a datasets.Dataset)"
)


def column_names(table: TableLike) -> list[Any]:
    """The names of a table's columns, in its order.

    Args:
      table: anything with named columns.

    Raises:
      TypeError: not a table; the message says what to call.

    Example:
      >>> column_names({"text": ["good", "bad"], "label": [1, 0]})
      ['text', 'label']
    """
    table = _checked(table)
    if isinstance(table, Mapping):
        return list(table)
    if isinstance(table, np.ndarray):
        return list(table.dtype.names or ())
    names = getattr(table, "column_names", None)
    if isinstance(names, list):  # a frame may have a column of that name
        return list(names)
    return list(table.columns)


def count_rows(table: TableLike) -> int:
    """The common length of all columns.

    Args:
      table: anything with named columns.

    Raises:
      TypeError: not a table, or a column without a length.
      ValueError: no column, or columns of different lengths.
    """
    table = _checked(table)
    if not isinstance(table, Mapping):
        return len(table)
    lengths = {name: _length(name, column) for name, column in table.items()}
    different = set(lengths.values())
    if len(different) != 1:
        raise ValueError(
            f"expected one or more columns of equal length, got lengths {lengths}"
        )
    return different.pop()


def read_column(table: TableLike, name: str, pad: Any = None) -> np.ndarray:
    """One column as an array, rows first.

    Args:
      table: anything with named columns.
      name: of the column.
      pad: fills rows of a ragged column up to the longest, on the right; None refuses
        them.

    Returns:
      [rows, ...], with the dtype that the table gives; text and other objects as an
      array of objects.

    Raises:
      KeyError: no such column; the message lists the columns and the nearest name.
      TypeError: not a table, or a padding that is no number.
      ValueError: missing values, values of several types, ragged rows without `pad`.
    """
    count_rows(table)
    names = column_names(table)
    if name not in names:
        raise unknown_column_error(name, names)
    if names.count(name) > 1:
        raise ValueError(f"column {name!r} is in the table twice; rename one")
    cure = f"Population.from_table pads it with pad={{{name!r}: 0}}"
    column = _whole_column(name, _checked(table))
    array = as_array(f"column {name!r}", column, pad=pad, cure=cure)
    if array.dtype.kind == "O" and array.ndim == 1:
        absent = map(is_missing, array)
        refuse_missing(f"column {name!r}", np.fromiter(absent, bool, len(array)))
    return array


def check_column_name(parameter: str, value: object) -> None:
    """Raises TypeError unless `value` is text that can name a column.

    Args:
      parameter: name of the parameter, for the message.
      value: what should be the name of a column.
    """
    if not isinstance(value, str) or not value:
        raise TypeError(
            f"expected {parameter} to be the name of one column (text), got "
            f"{parameter}={value!r}"
        )


def _checked(table: TableLike) -> Any:
    """`table`, or the mapping in it; TypeError with what to call if it is none."""
    if isinstance(table, Table):
        return table.columns
    if isinstance(table, Mapping):
        nested = [key for key, value in table.items() if _is_table(value)]
        if nested:
            raise TypeError(
                f"{_EXPECTED}, got a {_type(table)} of tables {nested}; pass one: "
                f"table[{nested[0]!r}]"
            )
        return table
    if not _is_table(table):
        raise TypeError(f"{_EXPECTED}, got {_described(table)}")
    return table


def _is_table(value: Any) -> bool:
    """Whether columns of `value` have names and a number of rows."""
    if isinstance(value, (Mapping, Table)):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.names is not None
    if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        return False
    return hasattr(value, "column_names") or hasattr(value, "columns")


def _described(value: Any) -> str:
    """What is no table, and what to call to make one of it."""
    if isinstance(value, (str, os.PathLike)):
        return (
            f"the path {str(value)!r}; read it first (pandas.read_csv, "
            "pyarrow.parquet.read_table)"
        )
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        return (
            "a list of rows; make columns: {name: [row[name] for row in rows] for "
            "name in rows[0]}"
        )
    if isinstance(value, np.ndarray):
        return (
            f"a plain ndarray of shape {value.shape}, whose columns are not named; "
            "pass a dict of arrays"
        )
    if hasattr(value, "collect"):
        return (
            f"a {_type(value)}, which is not read yet; call .collect() (polars) or "
            ".toPandas() (Spark)"
        )
    if hasattr(value, "column_names"):
        return (
            f"a {_type(value)}, whose rows are not there yet; pass one that was read "
            "into memory (a datasets.Dataset)"
        )
    if hasattr(value, "to_frame"):
        return f"a {_type(value)}, which is one column; pass the table"
    return f"a {_type(value)}"


def _length(name: Any, column: Any) -> int:
    """Rows of a column."""
    if isinstance(column, (str, bytes)):
        raise TypeError(f"expected column {name!r} to be one value a row, got one text")
    is_scalar = isinstance(column, np.ndarray) and column.ndim == 0
    if is_scalar or not isinstance(column, Sized):
        raise TypeError(
            f"expected column {name!r} to be an array or a list, got a {_type(column)}"
        )
    return len(column)


def _whole_column(name: str, table: Any) -> Any:
    """The column as an array or a list of values; missing values are refused."""
    if isinstance(table, (Mapping, np.ndarray)):
        column = table[name]
    elif hasattr(table, "with_format") and hasattr(table, "select_columns"):
        # datasets: through Arrow, values as stored.
        selected = table.select_columns([name])
        column = selected.with_format("arrow")[:].column(name)
    elif callable(getattr(table, "column", None)):  # Arrow
        column = table.column(name)
    else:  # pandas, polars
        column = table[name]
    return _numpy_of(name, column)


def _numpy_of(name: str, column: Any) -> Any:
    """An array, or a list of values, of one library's column."""
    if isinstance(column, (np.ndarray, list, tuple)):
        return column
    if isinstance(getattr(column, "null_count", None), int):
        return _numpy_of_arrow(name, column)
    if hasattr(column, "null_count"):  # polars
        absent = column.is_null()
        refuse_missing(f"column {name!r}", absent.to_numpy())
        return column.to_numpy()
    if hasattr(column, "isna"):  # pandas
        # A NaN among NumPy's own floats is a number that the table was given.
        if not (isinstance(column.dtype, np.dtype) and column.dtype.kind == "f"):
            absent = column.isna()
            refuse_missing(f"column {name!r}", np.asarray(absent))
        return column.to_numpy()
    if hasattr(column, "__array__"):
        return np.asarray(column)
    return list(column)


def _numpy_of_arrow(name: str, column: Any) -> np.ndarray:
    """An array of an Arrow column."""
    absent = column.is_null()
    refuse_missing(f"column {name!r}", np.asarray(absent))
    whole = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    # A large chunked column may stay in chunks.
    for array in getattr(whole, "chunks", [whole]):
        inner = array
        while "list" in str(inner.type).partition("<")[0]:
            inner = inner.flatten()
            if inner.null_count:
                raise ValueError(
                    f"column {name!r} has {inner.null_count} missing values "
                    "inside its lists; fill them or drop their rows"
                )
    if hasattr(whole, "chunks"):
        return whole.to_numpy()
    return whole.to_numpy(zero_copy_only=False)


def _type(value: Any) -> str:
    """The name of a value's type, with its module."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
