"""Partitioners that skew the labels between clients: Dirichlet and pathological.

Semantics of flwr-datasets 0.6; `partitioners` says where ours deviate as a family. With
the same seed and the same column these draw the same random numbers in the same order
as flwr-datasets does on its first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from warnings import warn

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike, check_column_name
from fedjax_fm.population.partition_checks import (
    categories,
    check_alpha,
    check_enough_rows,
    check_seed,
    rows_by_category,
    shuffled,
)

ClassAssignmentMode = Literal["random", "deterministic", "first-deterministic"]

DIRICHLET_DRAWS = 11  # flwr-datasets draws once and repeats ten times


@dataclass(frozen=True)
class DirichletPartitioner:
    """Deals each class to the clients in shares drawn from a Dirichlet distribution.

        shares of a class ~ Dirichlet(alpha) over the clients

    With a small alpha a class sits with few clients; with alpha to infinity every
    client has the label shares of the whole table.

    Attributes:
      num_partitions: number of clients.
      partition_by: column of the labels.
      alpha: one concentration for all clients, or one per client (length
        `num_partitions`).
      min_partition_size: rows each client must get. A draw that misses it is thrown
        away and all classes are drawn again, up to 11 draws, so the result is a draw
        *given* that size. Deviation: flwr-datasets warns at each repetition; here only
        the last failure raises.
      self_balancing: a client above the mean number of rows gets nothing of the classes
        still to be dealt (in the code of Yurochkin et al., not in their text).
        Deviation: where a tiny alpha leaves a class with no client to take it,
        flwr-datasets divides by zero; here the draw counts as failed.
      shuffle: put each client's rows in random order; else class by class, ascending.
      seed: of the draws and the shuffling.

    Raises:
      ValueError: alpha not in (0, 1e100] or of the wrong length; at partition time more
        partitions than rows, or `min_partition_size` not reached. Deviation: a size
        that no draw can reach fails at once.

    References:
      Yurochkin, M. et al. (2019). Bayesian Nonparametric Federated Learning of Neural
      Networks. ICML. arXiv:1905.12022, section 4.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import DirichletPartitioner
      >>> table = {"label": np.array([0, 1] * 50)}
      >>> clients = DirichletPartitioner(4, "label", alpha=1.0).partition(table)
      >>> sizes = [len(rows) for rows in clients]
      >>> len(sizes), sum(sizes), min(sizes) >= 10
      (4, 100, True)
    """

    num_partitions: int
    partition_by: str
    alpha: float | Sequence[float]
    min_partition_size: int = 10
    self_balancing: bool = False
    shuffle: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        checks.whole("num_partitions", self.num_partitions, least=1)
        check_column_name("partition_by", self.partition_by)
        checks.whole("min_partition_size", self.min_partition_size, least=0)
        checks.flag("self_balancing", self.self_balancing)
        checks.flag("shuffle", self.shuffle)
        check_seed(self.seed)
        if np.shape(self.alpha) not in ((), (self.num_partitions,)):
            raise ValueError(
                "expected one alpha or one per client "
                f"(num_partitions={self.num_partitions}), got alpha={self.alpha!r} of "
                f"shape {np.shape(self.alpha)}"
            )
        object.__setattr__(self, "alpha", check_alpha(self.alpha))

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client.

        Args:
          table: anything with named columns of equal length, see `partitioners`.

        Returns:
          int64[rows of the client] for each client.
        """
        values, codes = categories(table, self.partition_by)
        check_enough_rows(self.num_partitions, len(codes))
        if self.num_partitions * self.min_partition_size > len(codes):
            raise self._size_error(f"{len(codes)} rows are not enough")
        rows_of_classes = rows_by_category(codes, len(values))
        rng = np.random.default_rng(self.seed)
        best = 0
        for _ in range(DIRICHLET_DRAWS):
            clients = self._draw(rows_of_classes, rng)
            smallest = min(len(rows) for rows in clients) if clients else 0
            if clients and smallest >= self.min_partition_size:
                return shuffled(clients, rng, self.shuffle)
            best = max(best, smallest)
        raise self._size_error(
            f"the smallest client had at most {best} rows in {DIRICHLET_DRAWS} "
            f"draws of {len(codes)} rows"
        )

    def _draw(
        self, rows_of_classes: list[np.ndarray], rng: np.random.Generator
    ) -> list[np.ndarray] | None:
        """One draw over all classes; None if no client is left to take one of them."""
        alpha = np.broadcast_to(np.asarray(self.alpha), (self.num_partitions,))
        mean_size = sum(len(rows) for rows in rows_of_classes) / self.num_partitions
        sizes = np.zeros(self.num_partitions, dtype=np.int64)
        pieces: list[list[np.ndarray]] = []
        for rows in rows_of_classes:
            shares = rng.dirichlet(alpha)
            if self.self_balancing:
                shares[sizes > mean_size] = 0.0
                total = sum(shares.tolist())
                if total == 0.0:
                    # Tiny alpha: all of the class fell to clients that are full.
                    return None
                shares = shares / total
            ends = np.cumsum(shares) * len(rows)
            ends = ends.astype(np.int64)[:-1]
            pieces.append(np.split(rows, ends))
            sizes += [len(piece) for piece in pieces[-1]]
        return [np.concatenate(client) for client in zip(*pieces, strict=True)]

    def _size_error(self, finding: str) -> ValueError:
        """The error of a size that was not reached."""
        return ValueError(
            f"expected min_partition_size={self.min_partition_size} rows for each "
            f"of num_partitions={self.num_partitions} clients with "
            f"alpha={self.alpha}: {finding}; raise alpha, lower "
            "min_partition_size or num_partitions, or take self_balancing=True"
        )


@dataclass(frozen=True)
class PathologicalPartitioner:
    """Gives each client rows of exactly `num_classes_per_partition` classes.

    First each client is given its classes, then the rows of a class are cut into equal
    parts for the clients that have it. A class that no client has is dropped; as in
    flwr-datasets this warns.

    Attributes:
      num_partitions: number of clients.
      partition_by: column of the labels.
      num_classes_per_partition: classes of each client.
      class_assignment_mode: which they are, in ascending order of the labels. "random":
        drawn without replacement for each client. "deterministic": client k has classes
        k, k + 1, ... (modulo their number). "first-deterministic": client k has class k
        (modulo their number), the others are drawn.
      shuffle: put each client's rows in random order; else class by class, ascending.
      seed: of the draws and the shuffling.

    Raises:
      ValueError: an unknown mode; at partition time more classes per client than there
        are, or a class assigned to more clients than it has rows.

    References:
      Li, Q., Diao, Y., Chen, Q. and He, B. (2022). Federated Learning on Non-IID Data
      Silos: An Experimental Study. ICDE. arXiv:2102.02079 (quantity-based label
      imbalance; there "first-deterministic").

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import PathologicalPartitioner
      >>> table = {"label": np.array([0, 1, 2, 0, 1, 2])}
      >>> rule = PathologicalPartitioner(3, "label", 1, "deterministic", shuffle=False)
      >>> rule.partition(table)
      [array([0, 3]), array([1, 4]), array([2, 5])]
    """

    num_partitions: int
    partition_by: str
    num_classes_per_partition: int
    class_assignment_mode: ClassAssignmentMode = "random"
    shuffle: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        checks.whole("num_partitions", self.num_partitions, least=1)
        check_column_name("partition_by", self.partition_by)
        checks.whole(
            "num_classes_per_partition", self.num_classes_per_partition, least=1
        )
        checks.choice(
            "class_assignment_mode",
            self.class_assignment_mode,
            get_args(ClassAssignmentMode),
        )
        checks.flag("shuffle", self.shuffle)
        check_seed(self.seed)

    def partition(self, table: TableLike) -> list[np.ndarray]:
        """Row numbers of each client.

        Args:
          table: anything with named columns of equal length, see `partitioners`.

        Returns:
          int64[rows of the client] for each client.
        """
        values, codes = categories(table, self.partition_by)
        n_classes = len(values)
        check_enough_rows(self.num_partitions, len(codes))
        if self.num_classes_per_partition > n_classes:
            raise ValueError(
                "expected num_classes_per_partition <= number of classes in "
                f"{self.partition_by!r}, got "
                f"num_classes_per_partition={self.num_classes_per_partition} for "
                f"{n_classes} classes"
            )
        rng = np.random.default_rng(self.seed)
        classes = [
            self._classes_of(client, n_classes, rng)
            for client in range(self.num_partitions)
        ]
        n_owners = np.bincount(np.concatenate(classes), minlength=n_classes)
        n_rows = np.bincount(codes, minlength=n_classes)
        self._check_owners(values, n_owners, n_rows)
        parts = []  # of each class, one for each client that has it
        rows_of_classes = rows_by_category(codes, n_classes)
        for rows, owners in zip(rows_of_classes, n_owners, strict=True):
            pieces = np.array_split(rows, max(owners, 1))
            parts.append(iter(pieces))
        clients = []
        for owned in classes:
            pieces = [next(parts[k]) for k in sorted(owned)]
            clients.append(np.concatenate(pieces))
        return shuffled(clients, rng, self.shuffle)

    def _classes_of(
        self, client: int, n_classes: int, rng: np.random.Generator
    ) -> list[int]:
        """The classes of one client."""
        n_wanted = self.num_classes_per_partition
        if self.class_assignment_mode == "deterministic":
            return [(client + k) % n_classes for k in range(n_wanted)]
        if self.class_assignment_mode == "random":
            return rng.choice(n_classes, size=n_wanted, replace=False).tolist()
        owned = [client % n_classes]
        while len(owned) < n_wanted:
            drawn = int(rng.choice(n_classes, size=1)[0])
            if drawn not in owned:
                owned.append(drawn)
        return owned

    def _check_owners(
        self, values: np.ndarray, n_owners: np.ndarray, n_rows: np.ndarray
    ) -> None:
        """Refuses classes with too few rows; warns of those that no client has."""
        for k in np.flatnonzero(n_owners > n_rows):
            raise ValueError(
                f"class {values[k]!r} is assigned to {n_owners[k]} clients but "
                f"has {n_rows[k]} rows; lower num_partitions or "
                "num_classes_per_partition, or take "
                "class_assignment_mode='deterministic'"
            )
        unused = np.flatnonzero(n_owners == 0)
        if unused.size:
            warn(
                f"no client has classes {values[unused].tolist()}; their "
                f"{n_rows[unused].sum()} rows are dropped "
                "(class_assignment_mode='first-deterministic' uses every class "
                "if clients suffice)",
                stacklevel=3,
            )
