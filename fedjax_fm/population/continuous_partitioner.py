"""A partitioner that skews a measured property between clients, such as length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike, check_column_name, read_column
from fedjax_fm.population.partition_checks import (
    check_enough_rows,
    check_seed,
    shuffled,
)


@dataclass(frozen=True)
class ContinuousPartitioner:
    """Sorts rows by a property, blurred by noise, and cuts them into equal parts.

        score = strictness (x - mean) / std + (1 - strictness) noise,  noise ~ N(0, 1)

    Strictness 0 is IID, 1 follows the property. The first `rows % num_partitions`
    clients have one row more.

    Deviations from flwr-datasets 0.6: x stays float64 (there it is rounded to float32),
    so that dates and large ids keep their order; rows of equal score keep the order of
    the table (flwr-datasets leaves it to its sort); a property of tiny spread is scaled
    like any other, only a constant one is refused, and not with strictness 0.

    Attributes:
      num_partitions: number of clients.
      partition_by: column of the property, finite numbers.
      strictness: in [0, 1].
      shuffle: put each client's rows in random order; else ascending by score.
      seed: of the noise and the shuffling.

    Raises:
      ValueError: strictness outside [0, 1]; at partition time more partitions than
        rows, a column that is not of finite numbers, or a constant one with strictness
        > 0.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import ContinuousPartitioner
      >>> table = {"length": np.array([5.0, 1.0, 4.0, 2.0])}
      >>> rule = ContinuousPartitioner(2, "length", strictness=1.0, shuffle=False)
      >>> rule.partition(table)
      [array([1, 3]), array([2, 0])]
    """

    num_partitions: int
    partition_by: str
    strictness: float
    shuffle: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        checks.whole("num_partitions", self.num_partitions, least=1)
        check_column_name("partition_by", self.partition_by)
        checks.real("strictness", self.strictness, least=0, most=1)
        checks.flag("shuffle", self.shuffle)
        check_seed(self.seed)

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client.

        Args:
          table: anything with named columns of equal length, see `partitioners`.

        Returns:
          int64[rows of the client] for each client.
        """
        values = _numbers(table, self.partition_by)
        check_enough_rows(self.num_partitions, len(values))
        rng = np.random.default_rng(self.seed)
        noise = rng.normal(loc=0, scale=1, size=len(values))
        signal = self.strictness * self._standardised(values)
        scores = signal + (1 - self.strictness) * noise
        order = np.argsort(scores, kind="stable").astype(np.int64)
        return shuffled(np.array_split(order, self.num_partitions), rng, self.shuffle)

    def _standardised(self, values: np.ndarray) -> np.ndarray:
        """f64[rows] of mean 0 and deviation 1; zeros where the property has no say."""
        if self.strictness == 0:
            return np.zeros(len(values))
        if values.min() == values.max():
            raise ValueError(
                f"column {self.partition_by!r} holds nothing but {values[0]}, "
                "which tells no clients apart; take another column or "
                "strictness=0"
            )
        scaled = values / np.abs(values).max()  # squares of huge numbers would overflow
        return (scaled - scaled.mean()) / scaled.std()


def _numbers(table: TableLike, name: str) -> np.ndarray:
    """f64[rows], a column of finite numbers."""
    column = read_column(table, name)
    if column.ndim != 1:
        raise ValueError(
            f"expected a one-dimensional column {name!r} to partition by, got shape "
            f"{column.shape}"
        )
    if column.dtype.kind not in "iuf":
        raise ValueError(
            f"expected column {name!r} to hold numbers, got {column.dtype}; convert it "
            "with astype"
        )
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        n_nan = np.count_nonzero(np.isnan(column))
        found = (
            f"holds {n_nan} NaN" if n_nan else f"holds {column[np.isinf(column)][0]}"
        )
        raise ValueError(
            f"column {name!r} {found}, expected finite numbers; drop these rows "
            "or give them a value"
        )
    return column.astype(np.float64)
