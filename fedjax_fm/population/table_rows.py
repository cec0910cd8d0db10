"""Which rows and which columns of a table a population takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_fm.datasets.table import unknown_column_error
from fedjax_fm.population.columns import (
    TableLike,
    column_names,
    count_rows,
    read_column,
)
from fedjax_fm.population.partitioners import NaturalIdPartitioner


def rows_of_clients(table: TableLike, by: Any, rows: Any) -> list[np.ndarray]:
    """Row numbers of each client, by a column of ids, a partitioner, or as given.

    Args:
      table: anything with named columns.
      by: a column of ids, or a partitioner; None with `rows`.
      rows: row numbers of each client; None with `by`.

    Raises:
      TypeError: not exactly one of `by` and `rows`, or what is neither a column nor a
        partitioner.
      ValueError, IndexError: row numbers that the table does not have.
    """
    if (by is None) == (rows is None):
        raise TypeError(
            "expected by= (a column of ids, or a partitioner) or rows= (row "
            "numbers of each client), one of the two"
        )
    if rows is not None:
        return checked_rows(rows, count_rows(table))
    if isinstance(by, str):
        return NaturalIdPartitioner(by).partition(table)
    if not hasattr(by, "partition"):
        raise TypeError(
            f"expected by= to be the name of a column or a partitioner, got by={by!r}"
        )
    found = by.partition(table)
    if found and isinstance(found[0], list):
        raise TypeError(
            f"{type(by).__name__} deals columns and no rows; a population is made of "
            "rows"
        )
    return checked_rows(found, count_rows(table))


def checked_rows(rows: Iterable[Any], n_rows: int) -> list[np.ndarray]:
    """int64[rows] for each client; a row may be with several clients.

    Args:
      rows: row numbers of each client.
      n_rows: rows of the table.

    Raises:
      TypeError: a mask, or no whole numbers.
      IndexError: a number outside [0, n_rows).
      ValueError: no client.
    """
    clients = []
    for k, given in enumerate(rows):
        numbers = np.asarray(given)
        if numbers.dtype == bool:
            raise TypeError(
                f"client {k}: expected row numbers, got a mask; call "
                "np.flatnonzero(mask)"
            )
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise TypeError(
                f"client {k}: expected a list of whole row numbers, got dtype "
                f"{numbers.dtype} and shape {numbers.shape}"
            )
        outside = (
            numbers[(numbers < 0) | (numbers >= n_rows)] if numbers.size else numbers
        )
        if outside.size:
            raise IndexError(
                f"client {k}: expected row numbers in [0, {n_rows}), got {outside[0]}"
            )
        clients.append(numbers.astype(np.int64))
    if not clients:
        raise ValueError("a population needs at least one client, got rows=[]")
    return clients


def arrays_of(
    table: TableLike,
    columns: Sequence[str] | None,
    by: Any,
    pad: Mapping[str, Any] | None,
) -> dict[str, np.ndarray]:
    """The columns that become arrays: those named, or all but the one of ids.

    Args:
      table: anything with named columns.
      columns: which; None for all but `by`.
      by: the column of ids, or anything else.
      pad: column -> what fills its rows.

    Raises:
      KeyError: no such column.
      TypeError: names that are no text.
      ValueError: no column, one twice, or a `pad` of none of them.
    """
    known = column_names(table)
    if isinstance(columns, str):
        raise TypeError(
            f"expected a list of columns, got one name; write columns=[{columns!r}]"
        )
    names = [name for name in known if name != by] if columns is None else list(columns)
    if not names:
        raise ValueError(
            "expected one or more columns for the population, got "
            f"columns={names} of {known}"
        )
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"expected columns named by text, got {name!r}; rename it, or "
                "name others in columns="
            )
        if name not in known:
            raise unknown_column_error(name, known)
        if names.count(name) > 1:
            raise ValueError(
                f"column {name!r} is asked for or in the table twice; name it once"
            )
    padding = dict(pad or {})
    if unknown := [name for name in padding if name not in names]:
        raise ValueError(
            f"pad names {unknown[0]!r}, which is none of the columns {names}"
        )
    return {name: read_column(table, name, padding.get(name)) for name in names}
