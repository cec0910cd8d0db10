"""Partitioners: rules that deal the rows of a table to clients.

Names, parameters and semantics are those of flwr-datasets 0.6 (Apache-2.0, Flower
Labs), written anew; each docstring says where it deviates. All of them deviate in three
ways:

- `partition(table)` returns row numbers, one int64 array per client, instead of a
  dataset per call. The same object and table give the same arrays however often it is
  called. A table is a dict of columns, a pandas or polars frame, a pyarrow.Table, a
  datasets.Dataset; only the column that decides is read.
- An integer seed is required, so that every partition can be repeated.
- Parameters are checked when the partitioner is made, not when the first client is
  loaded.

The clients' arrays never share a row. They cover all rows, except where a docstring
says what is dropped. The two vertical partitioners deal columns and return names.
`Population.from_table(table, by=partitioner)` makes the clients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike, check_column_name
from fedjax_fm.population.continuous_partitioner import ContinuousPartitioner
from fedjax_fm.population.distribution_partitioner import DistributionPartitioner
from fedjax_fm.population.inner_dirichlet_partitioner import InnerDirichletPartitioner
from fedjax_fm.population.label_partitioners import (
    DirichletPartitioner,
    PathologicalPartitioner,
)
from fedjax_fm.population.partition_checks import (
    categories,
    check_enough_rows,
    check_seed,
    count_rows,
    rows_by_category,
)
from fedjax_fm.population.shard_partitioner import ShardPartitioner
from fedjax_fm.population.size_partitioners import (
    ExponentialPartitioner,
    IdToSizeFncPartitioner,
    LinearPartitioner,
    SizePartitioner,
    SquarePartitioner,
)
from fedjax_fm.population.vertical_partitioners import (
    VerticalEvenPartitioner,
    VerticalSizePartitioner,
)

__all__ = [
    "ContinuousPartitioner",
    "DirichletPartitioner",
    "DistributionPartitioner",
    "ExponentialPartitioner",
    "GroupedNaturalIdPartitioner",
    "IdToSizeFncPartitioner",
    "IidPartitioner",
    "InnerDirichletPartitioner",
    "LinearPartitioner",
    "NaturalIdPartitioner",
    "Partitioner",
    "PathologicalPartitioner",
    "ShardPartitioner",
    "SizePartitioner",
    "SquarePartitioner",
    "VerticalEvenPartitioner",
    "VerticalSizePartitioner",
]

GroupMode = Literal["allow-smaller", "allow-bigger", "drop-reminder", "strict"]


class Partitioner(Protocol):
    """Anything that deals the rows of a table to clients.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import Population
      >>> class OddAndEven:
      ...     def partition(self, table):
      ...         rows = np.arange(len(table["x"]))
      ...         return [rows[1::2], rows[::2]]
      >>> Population.from_table({"x": np.arange(5)}, by=OddAndEven()).sizes.tolist()
      [2, 3]
    """

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client.

        Args:
          table: anything with named columns of equal length.

        Returns:
          int64[rows of the client] for each client, no row in two of them.
        """
        ...


@dataclass(frozen=True)
class IidPartitioner:
    """Cuts rows in random order into shards of equal size.

    The first `rows % num_partitions` clients have one row more. Deviation:
    flwr-datasets cuts contiguous shards of the rows as they stand, which is IID only if
    they were shuffled before. `shuffle` and `seed` are ours; `shuffle=False` gives
    flwr's shards.

    Attributes:
      num_partitions: number of clients.
      shuffle: whether rows come in random order; else in the order of the table.
      seed: of that order.

    Raises:
      ValueError: num_partitions < 1; at partition time more partitions than rows.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import IidPartitioner
      >>> IidPartitioner(2, shuffle=False).partition({"label": np.zeros(5)})
      [array([0, 1, 2]), array([3, 4])]
    """

    num_partitions: int
    shuffle: bool = field(default=True, kw_only=True)
    seed: int = field(default=42, kw_only=True)

    def __post_init__(self) -> None:
        checks.whole("num_partitions", self.num_partitions, least=1)
        checks.flag("shuffle", self.shuffle)
        check_seed(self.seed)

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client.

        Args:
          table: anything with named columns of equal length.

        Returns:
          int64[rows of the client] for each client.
        """
        n_rows = count_rows(table)
        check_enough_rows(self.num_partitions, n_rows)
        rows = np.arange(n_rows, dtype=np.int64)
        if self.shuffle:
            rows = np.random.default_rng(self.seed).permutation(rows)
        return np.array_split(rows, self.num_partitions)


@dataclass(frozen=True)
class NaturalIdPartitioner:
    """Makes one client of each distinct value of a column.

    A reviewer, a role, a document. Deviation: clients stand in the order in which their
    value first appears; flwr-datasets sorts the values.

    Attributes:
      partition_by: column of the ids.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import NaturalIdPartitioner
      >>> partitioner, table = NaturalIdPartitioner("role"), {"role": ["b", "a", "b"]}
      >>> partitioner.partition(table)
      [array([0, 2]), array([1])]
      >>> partitioner.client_names(table)
      ['b', 'a']
    """

    partition_by: str

    def __post_init__(self) -> None:
        check_column_name("partition_by", self.partition_by)

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client, ascending.

        Args:
          table: anything with named columns of equal length.

        Returns:
          int64[rows of the client] for each client.
        """
        return _natural_clients(table, self.partition_by)[1]

    def client_names(self, table: TableLike) -> list[str]:
        """The value each client stands for, in the order of `partition`.

        Args:
          table: the one that is partitioned.
        """
        values, _ = _natural_clients(table, self.partition_by)
        return [str(value) for value in values.tolist()]


@dataclass(frozen=True)
class GroupedNaturalIdPartitioner:
    """Makes one client of every `group_size` distinct values of a column.

    Devices become organisations (cross-device to cross-silo).

    Attributes:
      partition_by: column of the ids.
      group_size: ids of a client. flwr-datasets lets 0 pass.
      mode: what happens to ids that are left, spelled as in flwr-datasets.
        "allow-smaller": they form a last, smaller client (also if there are fewer ids
        than `group_size`). "allow-bigger": they are spread over the first clients.
        "drop-reminder": their rows are dropped. "strict": they are an error.
      sort_unique_ids: take the ids sorted; else in order of first appearance.

    Raises:
      ValueError: group_size < 1 or an unknown mode; at partition time fewer ids than
        `group_size` in any mode but "allow-smaller", or a remainder in mode "strict".

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import GroupedNaturalIdPartitioner
      >>> table = {"role": np.array(["b", "a", "b", "c"])}
      >>> GroupedNaturalIdPartitioner("role", group_size=2).partition(table)
      [array([0, 2, 1]), array([3])]
    """

    partition_by: str
    group_size: int
    mode: GroupMode = "allow-smaller"
    sort_unique_ids: bool = False

    def __post_init__(self) -> None:
        check_column_name("partition_by", self.partition_by)
        checks.whole("group_size", self.group_size, least=1)
        checks.choice("mode", self.mode, get_args(GroupMode))
        checks.flag("sort_unique_ids", self.sort_unique_ids)

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client: id after id, the rows of an id ascending.

        Args:
          table: anything with named columns of equal length.

        Returns:
          int64[rows of the client] for each client.
        """
        values, rows_of_ids = _natural_clients(table, self.partition_by)
        if self.sort_unique_ids:
            rows_of_ids = [rows_of_ids[k] for k in np.argsort(values, kind="stable")]
        n_ids = len(rows_of_ids)
        remainder = n_ids % self.group_size
        self._check_fit(n_ids, remainder)
        if self.mode == "allow-bigger":
            groups = np.array_split(np.arange(n_ids), n_ids // self.group_size)
        else:
            end = n_ids - remainder if self.mode == "drop-reminder" else n_ids
            groups = [
                np.arange(n_ids)[start : start + self.group_size]
                for start in range(0, end, self.group_size)
            ]
        return [np.concatenate([rows_of_ids[k] for k in group]) for group in groups]

    def _check_fit(self, n_ids: int, remainder: int) -> None:
        """Raises ValueError if the mode does not allow this number of ids."""
        if n_ids < self.group_size and self.mode != "allow-smaller":
            raise ValueError(
                f"expected group_size <= number of ids in mode {self.mode!r}, got "
                f"group_size={self.group_size} for {n_ids} ids; take a smaller "
                'group_size or mode="allow-smaller"'
            )
        if remainder and self.mode == "strict":
            raise ValueError(
                'expected group_size to divide the number of ids in mode "strict", got '
                f"group_size={self.group_size} for {n_ids} ids (remainder "
                f"{remainder}); change it or take another mode"
            )


def _natural_clients(
    table: TableLike, partition_by: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Distinct values in order of first appearance, and the rows of each, ascending."""
    values, codes = categories(table, partition_by)
    if len(codes) == 0:
        raise ValueError(
            f"expected at least one row to partition by {partition_by!r}, got none"
        )
    rows = rows_by_category(codes, len(values))
    order = np.argsort([rows_of_value[0] for rows_of_value in rows])
    return values[order], [rows[k] for k in order]
