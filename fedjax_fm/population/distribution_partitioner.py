"""The partitioner of FedProx: few labels a client, and how many rows of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from warnings import warn

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike, check_column_name
from fedjax_fm.population.partition_checks import (
    categories,
    check_enough_rows,
    check_seed,
    rows_by_category,
    shuffled,
)


@dataclass(frozen=True)
class DistributionPartitioner:
    """Deals each client a few labels; a matrix says how much of each.

    Client k has the labels k, k + 1, ... (modulo their number L). Row i of the matrix
    belongs to the label i in ascending order, its columns to the clients that have this
    label, in ascending order. With P clients of K labels there are C = K P / L columns.
    With `rescale`, the j-th client of a label with n rows gets

        preassigned + floor((n - C preassigned) matrix[i, j] / sum_j matrix[i, j])

    of them, and what the rounding leaves goes to one of these clients, drawn at random.
    Without it the matrix holds numbers of rows. As in flwr-datasets' code (not in its
    text) fractions are cut, not rounded.

    Attributes:
      distribution_array: [L, C], not negative; with `rescale` each row has a positive
        sum.
      num_partitions: P, a multiple of L.
      num_unique_labels_per_partition: K, at most L.
      partition_by: column of the labels.
      preassigned_num_samples_per_label: rows of each label that each of its clients has
        before the rest is dealt; of no effect without `rescale`.
      rescale: deal all rows of each label in proportion; else the numbers as they are,
        and rows left are dropped, with a warning.
      shuffle: put each client's rows in random order; else label by label.
      seed: of the rows that rounding leaves, and the shuffling.

    Raises:
      ValueError: a matrix of other shape or with negative, NaN or infinite entries; at
        partition time numbers that do not fit the labels of the table.

    References:
      Li, T. et al. (2020). Federated Optimization in Heterogeneous Networks. MLSys.
      arXiv:1812.06127 (1000 clients with two digits each, sizes by a power law: a
      log-normal matrix).

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import DistributionPartitioner
      >>> table = {"label": np.array([0, 1] * 6)}
      >>> shares = np.array([[1.0, 2.0], [2.0, 1.0]])
      >>> clients = DistributionPartitioner(shares, 2, 2, "label", 0).partition(table)
      >>> [np.bincount(table["label"][rows]).tolist() for rows in clients]
      [[2, 4], [4, 2]]
    """

    distribution_array: Any
    num_partitions: int
    num_unique_labels_per_partition: int
    partition_by: str
    preassigned_num_samples_per_label: int
    rescale: bool = True
    shuffle: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        checks.whole("num_partitions", self.num_partitions, least=1)
        checks.whole(
            "num_unique_labels_per_partition",
            self.num_unique_labels_per_partition,
            least=1,
        )
        check_column_name("partition_by", self.partition_by)
        checks.whole(
            "preassigned_num_samples_per_label",
            self.preassigned_num_samples_per_label,
            least=0,
        )
        checks.flag("rescale", self.rescale)
        checks.flag("shuffle", self.shuffle)
        check_seed(self.seed)
        matrix = _checked_matrix(self.distribution_array, self.rescale)
        object.__setattr__(self, "distribution_array", matrix)

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client.

        Args:
          table: anything with named columns of equal length, see `partitioners`.

        Returns:
          int64[rows of the client] for each client.
        """
        values, codes = categories(table, self.partition_by)
        check_enough_rows(self.num_partitions, len(codes))
        rows_of_labels = rows_by_category(codes, len(values))
        self._check_fit(len(values))
        n_rows = [len(rows) for rows in rows_of_labels]
        counts = self._counts(np.array(n_rows))
        rng = np.random.default_rng(self.seed)
        pieces = [
            iter(self._cut(rows, numbers, rng))
            for rows, numbers in zip(rows_of_labels, counts, strict=True)
        ]
        clients = []
        for client in range(self.num_partitions):
            labels = [
                (client + k) % len(values)
                for k in range(self.num_unique_labels_per_partition)
            ]
            parts = [next(pieces[label]) for label in labels]
            clients.append(np.concatenate(parts))
        n_dealt = sum(len(rows) for rows in clients)
        self._warn_of_rows_left(n_dealt, len(codes))
        return shuffled(clients, rng, self.shuffle)

    def _counts(self, n_rows: np.ndarray) -> np.ndarray:
        """int64[L, C]: rows of each label for its clients, of `n_rows` int64[L]."""
        matrix = self.distribution_array
        if not self.rescale:
            too_many = np.flatnonzero(matrix.sum(axis=1) > n_rows)
            if too_many.size:
                label = too_many[0]
                raise ValueError(
                    f"distribution_array asks for {matrix[label].sum():g} rows of "
                    f"label {label} (in ascending order), the table has "
                    f"{n_rows[label]}; lower it or take rescale=True"
                )
            return matrix.astype(np.int64)
        shares = matrix / matrix.sum(axis=1, keepdims=True)
        set_aside = self.preassigned_num_samples_per_label * matrix.shape[1]
        scarce = np.flatnonzero(n_rows - set_aside < matrix.shape[1])
        if scarce.size:
            raise ValueError(
                f"expected at least {set_aside + matrix.shape[1]} rows of each "
                "label for preassigned_num_samples_per_label="
                f"{self.preassigned_num_samples_per_label} and {matrix.shape[1]} "
                f"clients a label, label {scarce[0]} (in ascending order) has "
                f"{n_rows[scarce[0]]}; lower it or pass more rows"
            )
        dealt = np.floor(shares * (n_rows - set_aside)[:, None]).astype(np.int64)
        return dealt + self.preassigned_num_samples_per_label

    def _cut(
        self, rows: np.ndarray, numbers: np.ndarray, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """A label's rows for each of its clients; one of them also has what is left."""
        *pieces, left = np.split(rows, np.cumsum(numbers))
        if self.rescale:
            drawn = rng.integers(0, len(pieces))
            pieces[drawn] = np.append(pieces[drawn], left)
        return pieces

    def _check_fit(self, n_labels: int) -> None:
        """Raises ValueError unless P, K and the matrix fit the number of labels."""
        if self.num_unique_labels_per_partition > n_labels:
            raise ValueError(
                "expected num_unique_labels_per_partition <= number of labels, "
                "got num_unique_labels_per_partition="
                f"{self.num_unique_labels_per_partition} for {n_labels} labels in "
                f"{self.partition_by!r}"
            )
        if self.num_partitions % n_labels:
            raise ValueError(
                "expected num_partitions to be a multiple of the number of "
                f"labels, got num_partitions={self.num_partitions} for {n_labels} "
                f"labels in {self.partition_by!r}"
            )
        shape = (
            n_labels,
            self.num_unique_labels_per_partition * self.num_partitions // n_labels,
        )
        if self.distribution_array.shape != shape:
            raise ValueError(
                f"expected a distribution_array of shape {shape} (labels, clients "
                f"that have a label), got {self.distribution_array.shape}"
            )

    def _warn_of_rows_left(self, n_dealt: int, n_rows: int) -> None:
        """Warns if rows are dropped."""
        if n_dealt < n_rows:
            warn(
                f"distribution_array deals {n_dealt} of {n_rows} rows; "
                f"{n_rows - n_dealt} are dropped",
                stacklevel=3,
            )


def _checked_matrix(matrix: Any, rescale: bool) -> np.ndarray:
    """f64[L, C], a copy."""
    try:
        array = np.asarray(matrix)
    except ValueError as error:
        raise ValueError(
            "expected distribution_array as one matrix of numbers, got rows of unequal "
            "length"
        ) from error
    if array.ndim != 2 or array.dtype.kind not in "iuf" or array.size == 0:
        raise ValueError(
            "expected distribution_array as a matrix of numbers (labels, clients "
            f"that have a label), got dtype {array.dtype} and shape {array.shape}"
        )
    wrong = array[~(np.isfinite(array) & (array >= 0))]
    if wrong.size:
        raise ValueError(
            "expected a distribution_array of finite numbers >= 0, got "
            f"{wrong[0]} in it"
        )
    empty = np.flatnonzero(array.sum(axis=1) == 0)
    if rescale and empty.size:
        raise ValueError(
            f"row {empty[0]} of distribution_array sums to 0; expected a positive "
            "sum, or rescale=False"
        )
    return array.astype(np.float64)
