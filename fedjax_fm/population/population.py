"""A population: all clients' examples as flat arrays with offsets (compressed rows)."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_fm.population import folder as folders
from fedjax_fm.population.clients import packed
from fedjax_fm.population.columns import TableLike
from fedjax_fm.population.partitioners import Partitioner
from fedjax_fm.population.table_rows import arrays_of, rows_of_clients
from fedjax_fm.population.values import checked_array


@dataclass(frozen=True)
class Population:
    """N clients of unequal size over shared flat arrays.

    Values reach the device as they are, or the population is refused by the name of the
    array: text and objects, integers that JAX would narrow to others, finite floats
    that would become infinite.

    Attributes:
      arrays: {name: [n, ...]}, all with the same n; numbers or bools.
      offsets: int64[N + 1]; client k owns rows offsets[k] to offsets[k + 1].

    Raises:
      TypeError: a name that is no text, offsets that are no integers.
      ValueError: arrays of unequal length, offsets that do not rise from 0 to n, values
        that no device holds.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import Population
      >>> population = Population({"x": np.arange(3)}, offsets=np.array([0, 2, 3]))
      >>> population.client(0)["x"].tolist(), population.sizes.tolist()
      ([0, 1], [2, 1])
    """

    arrays: Mapping[str, np.ndarray]
    offsets: np.ndarray

    def __post_init__(self) -> None:
        if not isinstance(self.arrays, Mapping):
            raise TypeError(
                "expected a mapping from names to arrays, got a "
                f"{type(self.arrays).__name__}"
            )
        arrays = {
            name: checked_array(name, array) for name, array in self.arrays.items()
        }
        lengths = {name: len(array) for name, array in arrays.items()}
        if not lengths:
            raise ValueError("a population needs at least one array, got none")
        different = set(lengths.values())
        if len(different) != 1:
            raise ValueError(
                f"arrays must share their first dimension, got lengths {lengths}"
            )
        offsets = _checked_offsets(self.offsets, different.pop())
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "offsets", offsets)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], offsets: np.ndarray | Sequence[int]
    ) -> Population:
        """Takes flat arrays as they are, without a copy.

        Args:
          arrays: {name: [n, ...]}.
          offsets: [N + 1], where each client's rows begin, and n.

        Raises:
          TypeError, ValueError: as for `Population`.

        Example:
          >>> import numpy as np
          >>> Population.from_arrays({"x": np.arange(3)}, [0, 2, 3]).n_clients
          2
        """
        # Checked and made an array there.
        return cls(arrays, offsets)  # type: ignore[arg-type]

    @classmethod
    def from_clients(cls, clients: Iterable[Mapping[str, np.ndarray]]) -> Population:
        """Packs the examples of clients that are given one by one.

        A client without examples takes dtypes and shapes from the others.

        Args:
          clients: {name: array[n_k, ...]} of each client; n_k may be 0 and may differ.

        Raises:
          TypeError: no sequence of mappings.
          ValueError: no client, or clients whose names, lengths, dtypes or shapes
            differ.

        Example:
          >>> import numpy as np
          >>> clients = [{"x": np.ones((2, 3), np.float32)}, {"x": np.array([])}]
          >>> Population.from_clients(clients)
          Population(2 clients, 2 examples, 0 to 2 a client (median 1); x float32[3])
        """
        arrays, sizes = packed(clients)
        offsets = np.cumsum([0, *sizes])
        return cls(arrays, offsets)

    @classmethod
    def from_table(
        cls,
        table: TableLike,
        *,
        by: str | Partitioner | None = None,
        rows: Iterable[Sequence[int] | np.ndarray] | None = None,
        columns: Sequence[str] | None = None,
        pad: Mapping[str, float] | None = None,
    ) -> Population:
        """Reads the clients from a table: by ids, by a partitioner, or by row numbers.

        Args:
          table: anything with named columns of equal length: a dict of columns, a
            pandas or polars frame, a pyarrow.Table, a datasets.Dataset.
          by: a column of ids, each distinct value one client in order of first
            appearance; or a partitioner.
          rows: instead of `by`, the row numbers of each client.
          columns: which become arrays; default all but the column of ids. Text must be
            tokenized before.
          pad: column -> what fills its rows up to the longest, on the right; without it
            ragged columns are refused.

        Raises:
          KeyError: no such column.
          TypeError, ValueError, IndexError: what is no table, missing values, text,
            ragged rows, foreign row numbers.

        Example:
          >>> users, ids = ["ann", "bob", "ann"], [[1, 2], [3], [4]]
          >>> table = {"user": users, "ids": ids, "label": [0, 1, 1]}
          >>> population = Population.from_table(table, by="user", pad={"ids": 0})
          >>> population.client(0)["ids"].tolist()
          [[1, 2], [4, 0]]
        """
        clients = rows_of_clients(table, by, rows)
        order = np.concatenate(clients)
        found = arrays_of(table, columns, by, pad)
        arrays = {name: column[order] for name, column in found.items()}
        sizes = [len(rows) for rows in clients]
        return cls(arrays, np.cumsum([0, *sizes]))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a new folder for `open`: one .npy file per array.

        It is whole or not there, whatever fails.

        Args:
          folder: where; must not be there yet.

        Raises:
          FileExistsError: there is something at `folder`.
        """
        folders.write(folder, self.arrays, self.offsets)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Population:
        """Opens what `save` wrote, memory-mapped.

        Examples are read when a client takes part. Arrays of 64-bit numbers are read
        once, in chunks, since a device may not hold their values.

        Args:
          folder: what `save` wrote.

        Raises:
          FileNotFoundError: not a population, or one that lacks a file.
          ValueError: a file that is no whole array.
        """
        return cls(*folders.read(folder))

    @property
    def n_clients(self) -> int:
        """Number of clients, N."""
        return len(self.offsets) - 1

    @property
    def n_examples(self) -> int:
        """Examples of all clients together."""
        return int(self.offsets[-1])

    @property
    def sizes(self) -> np.ndarray:
        """int64[N], examples of each client."""
        return np.diff(self.offsets)

    def client(self, k: int) -> dict[str, np.ndarray]:
        """The examples of one client, as views.

        Args:
          k: its id, 0 to N - 1.

        Raises:
          TypeError: no whole number.
          IndexError: no such client.
        """
        if isinstance(k, bool) or not hasattr(k, "__index__"):
            raise TypeError(
                f"expected a client id from 0 to {self.n_clients - 1}, got {k!r}"
            )
        if not 0 <= operator.index(k) < self.n_clients:
            raise IndexError(
                f"expected a client id from 0 to {self.n_clients - 1}, got {k}"
            )
        return {
            name: array[self.offsets[k] : self.offsets[k + 1]]
            for name, array in self.arrays.items()
        }

    def __repr__(self) -> str:
        sizes = self.sizes
        shapes = ", ".join(
            f"{name} {array.dtype}{list(array.shape[1:])}"
            for name, array in self.arrays.items()
        )
        least, most, median = sizes.min(), sizes.max(), np.median(sizes)
        return (
            f"Population({self.n_clients} clients, {self.n_examples} examples, "
            f"{least} to {most} a client (median {median:g}); {shapes})"
        )


def _checked_offsets(offsets: Any, n: int) -> np.ndarray:
    """int64[N + 1], rising from 0 to n."""
    try:
        found = np.asarray(offsets)
    except ValueError as error:
        raise ValueError(
            f"expected offsets of integers in one row, got {offsets!r}"
        ) from error
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(
            "expected offsets of integers of shape [N + 1] with N >= 1, got shape "
            f"{found.shape}"
        )
    if found.dtype.kind not in "iu":
        raise TypeError(
            f"expected offsets of integers, got dtype {found.dtype}; "
            "np.cumsum([0, *sizes]) of whole sizes gives them"
        )
    found = found.astype(np.int64)
    falls = np.any(np.diff(found) < 0)
    if found[0] != 0 or found[-1] != n or falls:
        between = " with a fall in between" if falls else ""
        raise ValueError(
            f"offsets must rise from 0 to the number of examples {n}, got {found[0]} "
            f"to {found[-1]}{between}"
        )
    return found
