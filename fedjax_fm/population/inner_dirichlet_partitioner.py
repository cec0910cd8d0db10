"""The partitioner of FedDyn: sizes are given, mixtures of labels are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from warnings import warn

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike, check_column_name
from fedjax_fm.population.partition_checks import (
    categories,
    check_alpha,
    check_seed,
    check_sizes,
    rows_by_category,
    shuffled,
)


@dataclass(frozen=True)
class InnerDirichletPartitioner:
    """Deals rows to clients of given sizes, each with a mixture of labels of its own.

        mixture_k ~ Dirichlet(alpha) over the classes

    Row by row a client that has room is drawn uniformly, then a class from its mixture.
    A class that has run out drops from all mixtures, which are scaled to sum to one
    again.

    With the same seed and labels 0, 1, ... this draws the numbers of flwr-datasets 0.6.
    Deviations: labels may be of any kind; where a client's whole mixture lay on classes
    that have run out, flwr-datasets stops ("probabilities contain NaN"), here the
    mixture is drawn again from Dirichlet(alpha of the classes left), its law given
    them.

    Attributes:
      partition_sizes: rows of each client, 0 allowed. Rows beyond their sum are
        dropped, with a warning.
      partition_by: column of the labels.
      alpha: one concentration for all classes, or one for each class in ascending order
        of the labels.
      shuffle: put each client's rows in random order; else in reverse order of the
        draws.
      seed: of the draws and the shuffling.

    Raises:
      ValueError: a size < 0, alpha not in (0, 1e100]; at partition time sizes that add
        up to more than the rows, or not one alpha for each class.

    References:
      Acar, D.A.E. et al. (2021). Federated Learning Based on Dynamic Regularization.
      ICLR. arXiv:2111.04263.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm.population import InnerDirichletPartitioner
      >>> table = {"label": np.array([0, 1] * 6)}
      >>> rule = InnerDirichletPartitioner([4, 8], "label", alpha=0.5)
      >>> [len(rows) for rows in rule.partition(table)]
      [4, 8]
    """

    partition_sizes: Sequence[int]
    partition_by: str
    alpha: float | Sequence[float]
    shuffle: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "partition_sizes", check_sizes(self.partition_sizes, least=0)
        )
        check_column_name("partition_by", self.partition_by)
        object.__setattr__(self, "alpha", check_alpha(self.alpha))
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
        n_classes, n_rows = len(values), len(codes)
        self._check_fit(n_classes, n_rows)
        rng = np.random.default_rng(self.seed)
        alpha = np.broadcast_to(np.asarray(self.alpha), (n_classes,))
        rows_of_classes = rows_by_category(codes, n_classes)
        clients = _deal(rows_of_classes, self.partition_sizes, alpha, rng)
        return shuffled(clients, rng, self.shuffle)

    def _check_fit(self, n_classes: int, n_rows: int) -> None:
        """Refuses sizes or alpha that do not fit the table; warns of rows left."""
        total = sum(self.partition_sizes)
        if total > n_rows:
            raise ValueError(
                f"expected partition_sizes that add up to at most {n_rows} rows, "
                f"got a sum of {total}"
            )
        if np.shape(self.alpha) not in ((), (n_classes,)):
            raise ValueError(
                f"expected one alpha or one for each of the {n_classes} classes "
                f"of {self.partition_by!r}, got alpha of shape "
                f"{np.shape(self.alpha)}"
            )
        if total < n_rows:
            warn(
                f"partition_sizes add up to {total} of {n_rows} rows; "
                f"{n_rows - total} are dropped",
                stacklevel=3,
            )


class _Mixtures:
    """The clients' shares of the classes that are left."""

    def __init__(self, alpha: np.ndarray, n_clients: int, rng: np.random.Generator):
        self.alpha, self.rng = alpha, rng
        self.shares = rng.dirichlet(alpha, size=n_clients)  # [clients, classes]
        self.is_left = np.ones(len(alpha), dtype=bool)
        self._ends = _cumulated(self.shares)

    def draw(self, client: int) -> int:
        """Draws a class of a client's mixture as rng.choice(classes, p=shares) does."""
        drawn = self.rng.random()
        return int(self._ends[client].searchsorted(drawn, side="right"))

    def drop(self, label: int) -> None:
        """Takes a class that has run out from all mixtures."""
        self.is_left[label] = False
        self.shares[:, label] = 0
        totals = self.shares.sum(axis=1, keepdims=True)
        for client in np.flatnonzero(totals[:, 0] == 0):
            again = self.rng.dirichlet(self.alpha[self.is_left])
            self.shares[client, self.is_left] = again
            totals[client] = self.shares[client].sum()
        self.shares = self.shares / totals
        self._ends = _cumulated(self.shares)


def _cumulated(shares: np.ndarray) -> np.ndarray:
    """Cumulated shares of each client, the last one exactly 1."""
    ends = shares.cumsum(axis=1)
    return ends / ends[:, -1:]


def _deal(
    rows_of_classes: list[np.ndarray],
    sizes: Sequence[int],
    alpha: np.ndarray,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Deals the last rows of a class first, to the last free places of a client."""
    mixtures = _Mixtures(alpha, len(sizes), rng)
    clients = [np.zeros(size, dtype=np.int64) for size in sizes]
    room, stock = list(sizes), [len(rows) for rows in rows_of_classes]
    n_clients = len(sizes)
    open_clients = list(range(n_clients))
    for _ in range(sum(sizes)):
        client = _with_room(open_clients, room, rng)
        room[client] -= 1
        label = mixtures.draw(client)
        while stock[label] == 0:
            mixtures.drop(label)
            label = mixtures.draw(client)
        stock[label] -= 1
        clients[client][room[client]] = rows_of_classes[label][stock[label]]
    return clients


def _with_room(
    open_clients: list[int], room: list[int], rng: np.random.Generator
) -> int:
    """A client drawn uniformly among those with room.

    One that turns out to be full leaves the list, and another is drawn.
    """
    while True:
        place = rng.integers(0, len(open_clients))
        client = open_clients[place]
        if room[client] > 0:
            return client
        del open_clients[place]
