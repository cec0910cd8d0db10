"""Parts that all partitioners share: reading a column, and checks of arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.column_values import kinds_of, refuse_missing
from fedjax_fm.population.columns import TableLike, count_rows, read_column

# A sum of larger ones may overflow, and numpy then draws shares of zero.
LARGEST_ALPHA = 1e100

__all__ = [
    "categories",
    "check_alpha",
    "check_enough_rows",
    "check_seed",
    "check_sizes",
    "count_rows",
    "rows_by_category",
    "shuffled",
]


def check_seed(seed: object) -> None:
    """Raises unless `seed` is a whole number >= 0, so that a partition can be repeated.

    Args:
      seed: what should be one.
    """
    checks.whole("seed", seed, least=0)


def check_alpha(alpha: Any) -> float | tuple[float, ...]:
    """Concentrations of a Dirichlet law, one or one a component, 0 < alpha <= 1e100.

    Args:
      alpha: a number, or a list of numbers.

    Returns:
      One float, or a tuple of them.

    Raises:
      TypeError: no numbers.
      ValueError: a number out of the bounds, or more than one axis.
    """
    is_list = isinstance(alpha, (Sequence, np.ndarray))
    if not is_list or isinstance(alpha, (str, bytes)) or np.ndim(alpha) == 0:
        return float(checks.real("alpha", alpha, above=0, most=LARGEST_ALPHA))
    if np.ndim(alpha) != 1:
        raise ValueError(
            "expected one alpha or a list of them, got alpha of shape "
            f"{np.shape(alpha)}"
        )
    for k, entry in enumerate(alpha):
        try:
            checks.real(f"alpha[{k}]", entry, above=0, most=LARGEST_ALPHA)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} in alpha={alpha!r}") from None
    return tuple(float(entry) for entry in alpha)


def check_sizes(sizes: Any, least: int) -> tuple[int, ...]:
    """Rows of each client as a tuple.

    Args:
      sizes: whole numbers, one a client.
      least: the least that each may be.

    Raises:
      TypeError: no list of whole numbers.
      ValueError: no size, or one below `least`.
    """
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, (Sequence, np.ndarray)):
        raise TypeError(
            f"expected a list of whole numbers, got partition_sizes={sizes!r}"
        )
    if len(sizes) == 0:
        raise ValueError(f"expected at least one size, got partition_sizes={sizes!r}")
    for client, size in enumerate(sizes):
        checks.whole(f"partition_sizes[{client}]", size, least=least)
    return tuple(int(size) for size in sizes)


def check_enough_rows(num_partitions: int, n_rows: int) -> None:
    """Raises ValueError if some client would have no row whatever the rule.

    Args:
      num_partitions: clients.
      n_rows: rows of the table.
    """
    if num_partitions > n_rows:
        raise ValueError(
            "expected num_partitions <= number of rows, got "
            f"num_partitions={num_partitions} for {n_rows} rows; ask for fewer "
            "clients or pass more rows"
        )


def categories(table: TableLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of a column, ascending, and which of them each row has.

    Args:
      table: anything with named columns, see `columns`.
      name: of the column.

    Returns:
      (values [categories], codes int64[rows], each in [0, categories)).

    Raises:
      KeyError: no such column; the message lists the columns and the nearest name.
      ValueError: the column is not one-dimensional, has missing values, or holds values
        that cannot be ordered.
    """
    column = read_column(table, name)
    if column.ndim != 1:
        raise ValueError(
            f"expected a one-dimensional column {name!r} to partition by, got shape "
            f"{column.shape}"
        )
    _check_all_there(column, name)
    kinds = kinds_of(column) if column.dtype.kind == "O" else []
    if len(kinds) > 1:
        raise ValueError(
            f"column {name!r} mixes types {kinds}, expected values of one type"
        )
    try:
        values, codes = np.unique(column, return_inverse=True)
    except TypeError as error:
        raise ValueError(
            f"column {name!r} holds {kinds[0] if kinds else column.dtype}, "
            "expected values that can be ordered (numbers, text)"
        ) from error
    return values, codes.astype(np.int64)


def _check_all_there(column: np.ndarray, name: str) -> None:
    """Raises ValueError if a row has no value."""
    if column.dtype.kind == "f" and np.isnan(column).any():
        n_nan = np.count_nonzero(np.isnan(column))
        raise ValueError(
            f"column {name!r} holds {n_nan} NaN, expected a value in every row; drop "
            "these rows or give them a value"
        )
    if column.dtype.kind in "mM":
        refuse_missing(f"column {name!r}", np.isnat(column))


def rows_by_category(codes: np.ndarray, n_categories: int) -> list[np.ndarray]:
    """The rows of each category, ascending.

    Args:
      codes: int64[rows], category of each row.
      n_categories: how many categories there are.

    Returns:
      int64[rows of that category] for each category.
    """
    order = np.argsort(codes, kind="stable").astype(np.int64)
    sizes = np.bincount(codes, minlength=n_categories)
    return np.split(order, np.cumsum(sizes)[:-1])


def shuffled(
    clients: list[np.ndarray], rng: np.random.Generator, shuffle: bool
) -> list[np.ndarray]:
    """Each client's rows, in random order if `shuffle`.

    Args:
      clients: rows of each client; not changed.
      rng: draws from it client by client.
      shuffle: whether to.
    """
    if not shuffle:
        return clients
    clients = [rows.copy() for rows in clients]
    for rows in clients:
        rng.shuffle(rows)
    return clients
