"""Partitioners that deal runs of rows by size alone, given or by the client's number.

Semantics of flwr-datasets 0.6. Rows keep the order of the table; shuffle the table
first if that order means something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from warnings import warn

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike
from fedjax_fm.population.partition_checks import check_sizes, count_rows


@dataclass(frozen=True)
class SizePartitioner:
    """Gives client k the next `partition_sizes[k]` rows in the order of the table.

    Rows beyond the sum of the sizes are dropped; as in flwr-datasets this warns.

    Attributes:
      partition_sizes: rows of each client, at least 1.

    Raises:
      ValueError: no size or a size < 1; at partition time sizes that add up to more
        than the rows.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import SizePartitioner
      >>> SizePartitioner([1, 2]).partition({"label": np.zeros(3)})
      [array([0]), array([1, 2])]
    """

    partition_sizes: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "partition_sizes", check_sizes(self.partition_sizes, least=1)
        )

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client, ascending.

        Args:
          table: anything with named columns of equal length.

        Returns:
          int64[rows of the client] for each client.
        """
        n_rows, total = count_rows(table), sum(self.partition_sizes)
        if total > n_rows:
            raise ValueError(
                f"expected partition_sizes that add up to at most {n_rows} rows, "
                f"got a sum of {total}"
            )
        if total < n_rows:
            warn(
                f"partition_sizes add up to {total} of {n_rows} rows; "
                f"{n_rows - total} are dropped",
                stacklevel=2,
            )
        return _runs(self.partition_sizes)


@dataclass(frozen=True)
class IdToSizeFncPartitioner:
    """Gives client k = 1, ..., P a share of the rows proportional to f(k).

        size_k = floor(n f(k) / sum_j f(j)),  n rows

    What the rounding leaves goes to the last client. Rows keep the order of the table.

    Attributes:
      num_partitions: P, number of clients.
      partition_id_to_size_fn: f, from the numbers f64[P] = 1, ..., P to f64[P], not
        negative.

    Raises:
      ValueError: num_partitions < 1; at partition time an f that is not finite and >= 0
        with a positive sum, or too few rows for each client to have one.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import IdToSizeFncPartitioner
      >>> partitioner = IdToSizeFncPartitioner(3, lambda ids: 1 / ids)
      >>> partitioner.partition({"label": np.zeros(11)})
      [array([0, 1, 2, 3, 4, 5]), array([6, 7, 8]), array([ 9, 10])]
    """

    num_partitions: int
    partition_id_to_size_fn: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        checks.whole("num_partitions", self.num_partitions, least=1)
        if not callable(self.partition_id_to_size_fn):
            raise TypeError(
                "expected a function of f64[P], got "
                f"partition_id_to_size_fn={self.partition_id_to_size_fn!r}"
            )

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client, ascending.

        Args:
          table: anything with named columns of equal length.

        Returns:
          int64[rows of the client] for each client.
        """
        n_rows = count_rows(table)
        if self.num_partitions > n_rows:  # before an array of as many numbers is made
            raise ValueError(
                f"expected a row for each of num_partitions={self.num_partitions} "
                f"clients, got {n_rows} rows; ask for fewer clients or pass more rows"
            )
        units = self._units()
        sizes = (units / units.sum() * n_rows).astype(np.int64)
        sizes[-1] += n_rows - sizes.sum()
        empty = np.flatnonzero(sizes < 1)
        if empty.size:
            raise ValueError(
                f"expected a row for each of num_partitions={self.num_partitions} "
                f"clients, but of {n_rows} rows client {empty[0]} gets "
                f"{sizes[empty[0]]} rows; ask for fewer clients or pass more rows"
            )
        return _runs(sizes)

    def _units(self) -> np.ndarray:
        """f(1), ..., f(P), f64[P], checked."""
        ids = np.linspace(1, self.num_partitions, self.num_partitions)
        with np.errstate(over="ignore"):  # infinity is refused by name below
            found = self.partition_id_to_size_fn(ids)
        units = np.asarray(found)
        if units.shape != ids.shape or units.dtype.kind not in "iuf":
            raise ValueError(
                "expected partition_id_to_size_fn to give numbers of shape "
                f"{ids.shape}, got dtype {units.dtype} of shape {units.shape}"
            )
        wrong = units[~(np.isfinite(units) & (units >= 0))]
        if wrong.size or not 0 < units.sum() < np.inf:
            raise ValueError(
                "expected partition_id_to_size_fn to give finite numbers >= 0 "
                "with a positive sum, got "
                f"{wrong[0] if wrong.size else units.sum()} for "
                f"num_partitions={self.num_partitions}"
            )
        return units


class LinearPartitioner(IdToSizeFncPartitioner):
    """Gives client k = 1, ..., P a share of the rows proportional to k.

    Attributes:
      num_partitions: P, number of clients.
      partition_id_to_size_fn: the identity.

    Raises:
      ValueError: num_partitions < 1; at partition time too few rows for each client to
        have one.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import LinearPartitioner
      >>> clients = LinearPartitioner(4).partition({"label": np.zeros(20)})
      >>> [len(rows) for rows in clients]
      [2, 4, 6, 8]
    """

    def __init__(self, num_partitions: int) -> None:
        super().__init__(num_partitions, np.positive)


class SquarePartitioner(IdToSizeFncPartitioner):
    """Gives client k = 1, ..., P a share of the rows proportional to k ** 2.

    Attributes:
      num_partitions: P, number of clients.
      partition_id_to_size_fn: the square.

    Raises:
      ValueError: num_partitions < 1; at partition time too few rows for each client to
        have one.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import SquarePartitioner
      >>> clients = SquarePartitioner(3).partition({"label": np.zeros(28)})
      >>> [len(rows) for rows in clients]
      [2, 8, 18]
    """

    def __init__(self, num_partitions: int) -> None:
        super().__init__(num_partitions, np.square)


class ExponentialPartitioner(IdToSizeFncPartitioner):
    """Gives client k = 1, ..., P a share of the rows proportional to exp(k).

    Each has e times the rows of the one before. With P clients the first has about a
    fraction exp(1 - P) of the rows, so that few clients need many rows.

    Attributes:
      num_partitions: P, number of clients.
      partition_id_to_size_fn: the exponential.

    Raises:
      ValueError: num_partitions < 1; at partition time too few rows for each client to
        have one.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import ExponentialPartitioner
      >>> clients = ExponentialPartitioner(3).partition({"label": np.zeros(20)})
      >>> [len(rows) for rows in clients]
      [1, 4, 15]
    """

    def __init__(self, num_partitions: int) -> None:
        super().__init__(num_partitions, np.exp)


def _runs(sizes: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Row numbers one after the other, in runs of these sizes."""
    rows = np.arange(sum(sizes), dtype=np.int64)
    return np.split(rows, np.cumsum(sizes)[:-1])
