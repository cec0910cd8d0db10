"""The partitioner of FedAvg: rows sorted by label, cut into shards, shards dealt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike, check_column_name
from fedjax_fm.population.partition_checks import (
    categories,
    check_enough_rows,
    check_seed,
    shuffled,
)


@dataclass(frozen=True)
class ShardPartitioner:
    """Sorts rows by label, cuts them into shards, and deals the shards at random.

    Which shards there are, with n rows and P clients, as in flwr-datasets:

    | num_shards_per_partition | shard_size | size of a shard | shards dealt |
    |---|---|---|---|
    | s | z | z | P s of the n // z whole ones (error if P s z > n) |
    | s | None | n // (P s) | P s of the whole ones (of all, if incomplete are kept) |
    | None | z | z | all whole ones (or all); the first clients get one more |

    Rows of shards not dealt are dropped, and so is the incomplete last shard unless
    `keep_incomplete_shard`. All rows are dealt for sure only in the third line with
    `keep_incomplete_shard=True`, or where the numbers divide. Rows of equal label keep
    the order of the table (flwr-datasets leaves it to its sort).

    Attributes:
      num_partitions: P, number of clients.
      partition_by: column of the labels.
      num_shards_per_partition: s, shards of each client; None lets `shard_size` decide.
      shard_size: z, rows of a shard; None lets `num_shards_per_partition` decide.
      keep_incomplete_shard: whether a last shard with fewer rows is dealt, too; of no
        effect where both numbers are given.
      shuffle: put each client's rows in random order; else shard by shard.
      seed: of the deal and the shuffling.

    Raises:
      ValueError: a number < 1, or neither `num_shards_per_partition` nor `shard_size`
        (flwr-datasets notices this only later); at partition time more partitions than
        rows, or too few rows for these shards.

    References:
      McMahan, H.B. et al. (2017). Communication-Efficient Learning of Deep Networks
      from Decentralized Data. AISTATS. arXiv:1602.05629, section 3: 100 clients with 2
      shards of 300 digits each.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import ShardPartitioner
      >>> table = {"label": np.array([1, 0, 1, 0])}
      >>> rule = ShardPartitioner(2, "label", num_shards_per_partition=1, shuffle=False)
      >>> sorted(rows.tolist() for rows in rule.partition(table))
      [[0, 2], [1, 3]]
    """

    num_partitions: int
    partition_by: str
    num_shards_per_partition: int | None = None
    shard_size: int | None = None
    keep_incomplete_shard: bool = False
    shuffle: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        checks.whole("num_partitions", self.num_partitions, least=1)
        check_column_name("partition_by", self.partition_by)
        checks.flag("keep_incomplete_shard", self.keep_incomplete_shard)
        checks.flag("shuffle", self.shuffle)
        check_seed(self.seed)
        for name in ("num_shards_per_partition", "shard_size"):
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name), least=1)
        if self.num_shards_per_partition is None and self.shard_size is None:
            raise ValueError(
                "expected num_shards_per_partition or shard_size or both, got None for "
                "both"
            )

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client.

        Args:
          table: anything with named columns of equal length, see `partitioners`.

        Returns:
          int64[rows of the client] for each client.
        """
        _, codes = categories(table, self.partition_by)
        n_rows = len(codes)
        check_enough_rows(self.num_partitions, n_rows)
        by_label = np.argsort(codes, kind="stable").astype(np.int64)
        size = self._size_of_shard(n_rows)
        n_shards = self._count_shards(n_rows, size)
        shards_of_clients = self._shards_of_clients(n_shards)
        rng = np.random.default_rng(self.seed)
        dealt = rng.permutation(n_shards)[: shards_of_clients.sum()]
        clients = []
        for shards in np.split(dealt, np.cumsum(shards_of_clients)[:-1]):
            parts = [by_label[shard * size : (shard + 1) * size] for shard in shards]
            clients.append(np.concatenate(parts))
        return shuffled(clients, rng, self.shuffle)

    def _size_of_shard(self, n_rows: int) -> int:
        """Rows of a shard."""
        n_wanted = self.num_partitions * (self.num_shards_per_partition or 1)
        size = n_rows // n_wanted if self.shard_size is None else self.shard_size
        is_given = self.num_shards_per_partition is not None
        if size == 0 or (is_given and n_wanted * size > n_rows):
            least = max(size, 1)
            raise ValueError(
                f"expected at least {n_wanted * least} rows for "
                f"num_partitions={self.num_partitions} x "
                f"num_shards_per_partition={self.num_shards_per_partition} x "
                f"shard_size={least}, got {n_rows}; lower one of the three"
            )
        return size

    def _count_shards(self, n_rows: int, size: int) -> int:
        """Shards that may be dealt."""
        both_given = (
            self.num_shards_per_partition is not None and self.shard_size is not None
        )
        keep_incomplete = self.keep_incomplete_shard and not both_given
        n_shards = -(-n_rows // size) if keep_incomplete else n_rows // size
        if n_shards < self.num_partitions:
            raise ValueError(
                "expected a shard for each of "
                f"num_partitions={self.num_partitions} clients, got {n_shards} "
                f"shards of shard_size={size} from {n_rows} rows; lower "
                "shard_size or num_partitions"
            )
        return n_shards

    def _shards_of_clients(self, n_shards: int) -> np.ndarray:
        """How many shards each client gets, int64[num_partitions]."""
        if self.num_shards_per_partition is not None:
            return np.full(
                self.num_partitions, self.num_shards_per_partition, dtype=np.int64
            )
        each, more = divmod(n_shards, self.num_partitions)
        return each + (np.arange(self.num_partitions) < more).astype(np.int64)
