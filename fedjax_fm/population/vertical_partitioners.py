"""Partitioners of vertical federated learning: each client has columns of every row.

Semantics of flwr-datasets 0.6, but `partition(table)` returns the names of each
client's columns, a list of str per client; `{name: table[name] for name in names}` is
its table. Deviations: a column that is to be dropped must be there (flwr-datasets
overlooks a typing error), no column plays two parts, and evenly dealt clients each get
a column.

In both a client's columns are its share of the columns that are left, in random order
with `shuffle`; then the columns of the active party, who has the labels; then the
shared columns. `active_party_columns_mode` says where the columns of the active party
go:

- "add_to_first", "add_to_last", "add_to_all", or a number: to the first, the last, all,
  or that client.
- "create_as_first", "create_as_last": to a client of their own, before or after the
  others.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike, column_names, count_rows
from fedjax_fm.population.partition_checks import check_seed

Mode = Literal[
    "add_to_first", "add_to_last", "create_as_first", "create_as_last", "add_to_all"
]

_PARTS = ("drop_columns", "shared_columns", "active_party_columns")


@dataclass(frozen=True)
class VerticalEvenPartitioner:
    """Deals columns in parts of equal size.

    The first `columns % num_partitions` clients have one more.

    Attributes:
      num_partitions: number of parts, before a client is created for the active party.
      active_party_columns: a column or columns, such as the labels.
      active_party_columns_mode: where they go: "add_to_first", "add_to_last",
        "add_to_all", the number of a client, or "create_as_first", "create_as_last" for
        a client of their own.
      drop_columns: a column or columns that are left out.
      shared_columns: a column or columns that all clients have.
      shuffle: deal the columns in random order; else in the order of the table.
      seed: of the order.

    Raises:
      TypeError, ValueError: a column named twice, an unknown mode or a client that is
        not there; at partition time a column that is not in the table, or fewer columns
        than parts.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import VerticalEvenPartitioner
      >>> table = {name: np.zeros(3) for name in ("age", "sex", "work", "income")}
      >>> VerticalEvenPartitioner(2, "income", shuffle=False).partition(table)
      [['age', 'sex'], ['work', 'income']]
    """

    num_partitions: int
    active_party_columns: str | list[str] | None = None
    active_party_columns_mode: Mode | int = "add_to_last"
    drop_columns: str | list[str] | None = None
    shared_columns: str | list[str] | None = None
    shuffle: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        checks.whole("num_partitions", self.num_partitions, least=1)
        _check_parts(self, self.num_partitions)

    def partition(self, table: TableLike) -> list[list[str]]:
        """Names of each client's columns.

        Args:
          table: anything with named columns of equal length.
        """
        columns = _columns_to_deal(self, table)
        if self.num_partitions > len(columns):
            raise ValueError(
                "expected num_partitions <= number of columns to deal, got "
                f"num_partitions={self.num_partitions} for {len(columns)} columns "
                f"{columns}"
            )
        each, more = divmod(len(columns), self.num_partitions)
        sizes = [each + (client < more) for client in range(self.num_partitions)]
        return _with_parts(self, _cut(columns, sizes))


@dataclass(frozen=True)
class VerticalSizePartitioner:
    """Deals columns in parts of given size.

    Attributes:
      partition_sizes: numbers of columns, which add up to those to deal, 0 allowed; or
        shares of them, floats that add up to one (within 0.01): client k gets
        floor(share_k columns), the last what is left. Columns named below do not count.
      active_party_columns: a column or columns, such as the labels.
      active_party_columns_mode: where they go, as in `VerticalEvenPartitioner`.
      drop_columns: a column or columns that are left out.
      shared_columns: a column or columns that all clients have.
      shuffle: deal the columns in random order; else in the order of the table.
      seed: of the order.

    Raises:
      TypeError, ValueError: sizes that are neither counts nor shares, a column named
        twice, an unknown mode or a client that is not there; at partition time a column
        that is not in the table, or counts that do not add up.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import VerticalSizePartitioner
      >>> table = {name: np.zeros(3) for name in ("age", "sex", "work", "income")}
      >>> sizes, mode = [2, 1], "create_as_first"
      >>> rule = VerticalSizePartitioner(sizes, "income", mode, shuffle=False)
      >>> rule.partition(table)
      [['income'], ['age', 'sex'], ['work']]
    """

    partition_sizes: Sequence[int] | Sequence[float]
    active_party_columns: str | list[str] | None = None
    active_party_columns_mode: Mode | int = "add_to_last"
    drop_columns: str | list[str] | None = None
    shared_columns: str | list[str] | None = None
    shuffle: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "partition_sizes", _counts_or_shares(self.partition_sizes)
        )
        _check_parts(self, len(self.partition_sizes))

    def partition(self, table: TableLike) -> list[list[str]]:
        """Names of each client's columns.

        Args:
          table: anything with named columns of equal length.
        """
        columns = _columns_to_deal(self, table)
        n_columns = len(columns)
        sizes = [int(size) for size in self.partition_sizes]
        if isinstance(self.partition_sizes[0], float):
            sizes = [int(share * n_columns) for share in self.partition_sizes[:-1]]
            sizes.append(n_columns - sum(sizes))
        if sum(sizes) != n_columns or min(sizes) < 0:
            raise ValueError(
                "expected partition_sizes that add up to the columns to deal, "
                f"got {self.partition_sizes} with a sum of {sum(sizes)} for "
                f"{n_columns} columns {columns}"
            )
        return _with_parts(self, _cut(columns, sizes))


VerticalPartitioner = VerticalEvenPartitioner | VerticalSizePartitioner


def _counts_or_shares(sizes: Any) -> tuple[int, ...] | tuple[float, ...]:
    """Counts of columns, or shares of them as floats that add up to one."""
    is_list = isinstance(sizes, (Sequence, np.ndarray))
    if not is_list or isinstance(sizes, (str, bytes)) or len(sizes) == 0:
        raise TypeError(
            f"expected a list of counts or of shares, got partition_sizes={sizes!r}"
        )
    if all(isinstance(size, (float, np.floating)) for size in sizes):
        for k, share in enumerate(sizes):
            checks.real(f"partition_sizes[{k}]", share, least=0, most=1)
        if not 0.99 < sum(sizes) < 1.01:
            raise ValueError(
                f"expected shares that add up to 1, got partition_sizes={sizes!r} "
                f"with a sum of {sum(sizes)}"
            )
        return tuple(float(share) for share in sizes)
    for k, count in enumerate(sizes):
        checks.whole(f"partition_sizes[{k}]", count, least=0)
    return tuple(int(count) for count in sizes)


def _check_parts(partitioner: VerticalPartitioner, num_partitions: int) -> None:
    """Checks what both partitioners share; named columns become tuples."""
    named: dict[str, str] = {}
    for part in _PARTS:
        columns = _named_columns(part, getattr(partitioner, part))
        for column in columns:
            if column in named:
                where = (
                    f"in {part} twice"
                    if named[column] == part
                    else f"in {named[column]} and in {part}"
                )
                raise ValueError(
                    f"expected each column in one part, got {[column]} {where} "
                    f"({column!r} twice)"
                )
            named[column] = part
        object.__setattr__(partitioner, part, tuple(columns))
    mode = partitioner.active_party_columns_mode
    if isinstance(mode, (int, np.integer)) and not isinstance(mode, bool):
        checks.whole(
            "active_party_columns_mode", mode, least=0, most=num_partitions - 1
        )
    else:
        checks.choice("active_party_columns_mode", mode, get_args(Mode))
    checks.flag("shuffle", partitioner.shuffle)
    check_seed(partitioner.seed)


def _named_columns(part: str, given: Any) -> list[str] | tuple[str, ...]:
    """The columns of one part; none for None."""
    if given is None:
        return []
    columns = [given] if isinstance(given, str) else given
    is_list = isinstance(columns, (list, tuple))
    if not is_list or not all(isinstance(column, str) for column in columns):
        raise TypeError(
            f"expected {part} to be a column or a list of columns, got {part}={given!r}"
        )
    return columns


def _columns_to_deal(partitioner: VerticalPartitioner, table: TableLike) -> list[str]:
    """The columns without a part of their own, in the order in which they are dealt."""
    count_rows(table)
    known = column_names(table)
    named = []
    for part in _PARTS:
        for column in getattr(partitioner, part):
            if column not in known:
                names = [str(name) for name in known]
                nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(
                    f"expected {part} to be of {known}, got {column!r}{hint}"
                )
            named.append(column)
    columns = [column for column in known if column not in named]
    if partitioner.shuffle:
        np.random.default_rng(partitioner.seed).shuffle(columns)
    return columns


def _cut(columns: list[str], sizes: list[int]) -> list[list[str]]:
    """Columns one after the other, in runs of these sizes."""
    ends = np.cumsum(sizes)
    return [columns[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _with_parts(
    partitioner: VerticalPartitioner, clients: list[list[str]]
) -> list[list[str]]:
    """The clients with the columns of the active party and the shared ones."""
    active = list(partitioner.active_party_columns or ())
    mode = partitioner.active_party_columns_mode
    if mode == "create_as_first":
        clients = [active, *clients]
    elif mode == "create_as_last":
        clients = [*clients, active]
    else:
        places = {
            "add_to_first": [0],
            "add_to_last": [len(clients) - 1],
            "add_to_all": range(len(clients)),
        }
        for place in places[mode] if isinstance(mode, str) else [mode]:
            clients[place] = clients[place] + active
    return [client + list(partitioner.shared_columns or ()) for client in clients]
