"""A population dealt over hosts: each has the examples of its own clients, and no others.

All hosts know how many examples every client has, so that they draw the same cohorts.
What a round needs of the examples passes between the devices, not through files.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from fedjax_fm import checks
from fedjax_fm.engine import hosts
from fedjax_fm.population import folder as folders
from fedjax_fm.population.population import Population

READ_WHOLE = (
    64 << 20
)  # bytes of an array; of larger ones each client's first row is read


@dataclass(frozen=True)
class DealtPopulation:
    """Clients whose examples lie on several hosts, for `Simulator`.

    Client ids count through the clients of process 0, then those of process 1, and so
    on: rounds are those of one population with all clients in this order.

    Attributes:
      mine: the clients of this process.
      bounds: int64[P + 1]; process p has the clients bounds[p] to bounds[p + 1].
      offsets: int64[N + 1] of all clients' examples, as of a `Population`.
      digests: {name: hexadecimal}, of each array's examples on all hosts; another
        number of hosts does not change them.

    Example:
      >>> from fedjax_fm import Population
      >>> from fedjax_fm.engine import DealtPopulation
      >>> mine = Population.from_clients([{"x": np.ones(4)}, {"x": np.zeros(2)}])
      >>> DealtPopulation.of_hosts(mine)  # each host calls it with its own clients
      DealtPopulation(2 clients, 6 examples on 1 process, clients 0 to 1 in this one)
    """

    mine: Population
    bounds: np.ndarray
    offsets: np.ndarray
    digests: Mapping[str, str]

    @classmethod
    def of_hosts(cls, mine: Population) -> "DealtPopulation":
        """The population of what each process has; all of them call it together.

        Args:
          mine: the clients of this process, with the columns that all have.

        Raises:
          TypeError: no `Population`.
          ValueError: processes have different columns.
        """
        checks.instance(
            "mine", mine, Population, "make one with Population.from_clients(...)"
        )
        hosts.check_agreement({"columns": _columns(mine)})
        counts = hosts.from_all(np.array([mine.n_clients]))[:, 0]
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        sizes = np.zeros(counts.max(), np.int32)
        sizes[: mine.n_clients] = mine.sizes
        of_all = hosts.from_all(sizes)
        in_order = [row[:n] for row, n in zip(of_all, counts, strict=True)]
        offsets = np.cumsum(np.concatenate([[0], *in_order]), dtype=np.int64)
        first = int(bounds[jax.process_index()])
        digests = {
            name: _digest_of_all(mine, name, first, int(offsets[-1]))
            for name in mine.arrays
        }
        return cls(mine, bounds, offsets, digests)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "DealtPopulation":
        """Opens what `Population.save` wrote; each process takes a part of its clients.

        Parts are clients in a row, with about as many examples each. Files are
        memory-mapped: of the examples of other processes nothing is read.

        Args:
          folder: the same files, on a disk that all hosts see or copied to each.

        Raises:
          FileNotFoundError: not a population, or one that lacks a file.
          ValueError: fewer clients than processes.
        """
        arrays, offsets = folders.read(folder)
        n_hosts, n_clients = jax.process_count(), len(offsets) - 1
        if n_clients < n_hosts:
            raise ValueError(
                f"expected at least a client for each of {n_hosts} processes, got "
                f"{n_clients} clients in {folder}"
            )
        first, end = _share(np.asarray(offsets), jax.process_index(), n_hosts)
        rows = slice(int(offsets[first]), int(offsets[end]))
        parts = {name: array[rows] for name, array in arrays.items()}
        return cls.of_hosts(Population(parts, offsets[first : end + 1] - rows.start))

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """{name: [n, ...]}, the examples of this process's clients."""
        return self.mine.arrays

    @property
    def n_clients(self) -> int:
        """Number of clients on all hosts, N."""
        return len(self.offsets) - 1

    @property
    def n_examples(self) -> int:
        """Examples of all clients on all hosts."""
        return int(self.offsets[-1])

    @property
    def sizes(self) -> np.ndarray:
        """int64[N], examples of each client."""
        return np.diff(self.offsets)

    def __repr__(self) -> str:
        n_hosts = len(self.bounds) - 1
        first, end = self.bounds[jax.process_index() :][:2]
        return (
            f"DealtPopulation({self.n_clients} clients, {self.n_examples} examples on "
            f"{n_hosts} process{'es' if n_hosts > 1 else ''}, clients {first} to "
            f"{end - 1} in this one)"
        )


def _share(offsets: np.ndarray, process: int, n_hosts: int) -> tuple[int, int]:
    """(first, end): the clients of a process, at least one each."""
    wanted = np.arange(1, n_hosts) * offsets[-1] / n_hosts
    cuts = np.searchsorted(offsets, wanted)
    n_clients = len(offsets) - 1
    bounds = np.concatenate([[0], cuts, [n_clients]])
    for k in range(1, n_hosts):  # also where one client has most of the examples
        bounds[k] = np.clip(bounds[k], bounds[k - 1] + 1, n_clients - n_hosts + k)
    return int(bounds[process]), int(bounds[process + 1])


def _columns(population: Population) -> str:
    """Names, dtypes and shapes of the columns in words."""
    return ", ".join(
        f"{name} {array.dtype}{list(array.shape[1:])}"
        for name, array in sorted(population.arrays.items())
    )


def _digest_of_all(mine: Population, name: str, first: int, n_rows: int) -> str:
    """The sum modulo 2^256 of the digests of all clients of all hosts."""
    array = mine.arrays[name]
    row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    is_large = n_rows * row_bytes > READ_WHOLE
    total = 0
    for k, (start, end) in enumerate(zip(mine.offsets, mine.offsets[1:], strict=False)):
        rows = array[start : min(end, start + 1) if is_large else end]
        hashed = hashlib.sha256(f"{first + k} {end - start}".encode())
        hashed.update(np.ascontiguousarray(rows).tobytes())
        total += int.from_bytes(hashed.digest(), "little")
    words = np.frombuffer((total % 2**256).to_bytes(32, "little"), np.int32)
    of_all = hosts.from_all(words)
    sums = sum(
        int.from_bytes(row.astype(np.int32).tobytes(), "little") for row in of_all
    )
    return f"{sums % 2**256:064x}"
