"""Two rules that deal rows to clients in one benchmark each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_fm import checks


@dataclass(frozen=True)
class PoissonUsers:
    """Cuts rows as they stand into users of Poisson size.

    Sizes are drawn until all rows are dealt; the last user has what is left. A draw of
    zero makes no user: pfl-research would keep an empty one.

    Attributes:
      mean: of a user's rows.
      seed: of the sizes.

    References:
      Granqvist et al. (2024). pfl-research. arXiv 2404.06430, the benchmark on Alpaca.

    Example:
      >>> table = {"text": np.arange(10)}
      >>> [len(rows) for rows in PoissonUsers(mean=4, seed=0).partition(table)]
      [2, 7, 1]
    """

    mean: float
    seed: int = 42

    def __post_init__(self) -> None:
        checks.real("mean", self.mean, above=0)
        checks.whole("seed", self.seed, least=0)

    def partition(self, table: Any) -> list[np.ndarray]:
        """Row numbers of each user, ascending.

        Args:
          table: anything with named columns of equal length.

        Returns:
          int64[rows of the user] for each user.
        """
        n_rows = _n_rows(table)
        rng = np.random.default_rng(self.seed)
        users, start = [], 0
        while start < n_rows:
            size = int(rng.poisson(self.mean))
            if size:
                end = min(start + size, n_rows)
                users.append(np.arange(start, end))
                start = end
        return users


@dataclass(frozen=True)
class LabelShares:
    """Gives each client the same number of rows, in fixed shares of the labels.

    With shares s[k][l] and c[l] rows of label l, every client has

        n = floor(min_l c[l] / sum_k s[k][l])

    rows, of which round(n s[k][l]) are of label l, one fewer where rounding asks for
    more than there are. Rows that are left go to nobody.

    Attributes:
      shares: [clients][labels], labels ascending; each row sums to 1.
      partition_by: column of the labels.
      seed: of which rows a client gets.

    Raises:
      ValueError: shares that are negative, do not sum to 1 or differ in length; at
        partition time another number of labels.

    References:
      Sun et al. (2024). Improving LoRA in Privacy-preserving Federated Learning. arXiv
      2403.12313 (FFA-LoRA), section 5.

    Example:
      >>> table = {"label": np.array([0, 1] * 30)}
      >>> rule = LabelShares(((0.15, 0.85), (0.85, 0.15), (0.5, 0.5)), "label")
      >>> [np.bincount(table["label"][rows]).tolist() for rows in rule.partition(table)]
      [[3, 17], [17, 3], [10, 10]]
    """

    shares: tuple[tuple[float, ...], ...]
    partition_by: str
    seed: int = 42

    def __post_init__(self) -> None:
        checks.whole("seed", self.seed, least=0)
        lengths = {len(share) for share in self.shares}
        if len(lengths) != 1:
            raise ValueError(
                f"expected as many shares for each client, got {self.shares}"
            )
        matrix = np.array(self.shares, float)
        whole = np.allclose(matrix.sum(axis=1), 1.0)
        if (matrix < 0).any() or not whole:
            raise ValueError(
                "expected shares >= 0 that sum to 1 for each client, got "
                f"shares={self.shares}"
            )

    def partition(self, table: Any) -> list[np.ndarray]:
        """Row numbers of each client.

        Args:
          table: anything with named columns of equal length.

        Returns:
          int64[rows of the client] for each client.
        """
        labels = np.asarray(table[self.partition_by])
        values, counts = np.unique(labels, return_counts=True)
        shares = np.array(self.shares, float)
        if len(values) != shares.shape[1]:
            raise ValueError(
                f"expected {shares.shape[1]} labels in {self.partition_by!r}, as many "
                f"as shares of a client, got {len(values)}: {values.tolist()}"
            )
        asked = shares.sum(axis=0)
        used = asked > 0
        each = int(np.min(counts[used] / asked[used]) + 1e-9)
        rng = np.random.default_rng(self.seed)
        pieces: list[list[np.ndarray]] = [[] for _ in shares]
        for label, value in enumerate(values):
            rows = rng.permutation(np.flatnonzero(labels == value))
            ends = np.cumsum(np.round(each * shares[:, label]).astype(int))
            for client, piece in enumerate(np.split(rows, ends)[:-1]):
                pieces[client].append(piece)
        return [np.sort(np.concatenate(client)) for client in pieces]


def _n_rows(table: Any) -> int:
    """Rows of a dictionary of columns, or of a table that has a length."""
    if isinstance(table, dict):
        return len(next(iter(table.values())))
    return len(table)
