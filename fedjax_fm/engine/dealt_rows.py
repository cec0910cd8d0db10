"""Rows of a dealt population, from the hosts that have them to all devices."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm.engine import hosts
from fedjax_fm.engine.data import (
    SMALLER,
    STREAM,
    DeviceData,
    check_rows,
    room_for,
    rows_of,
    sizes_of,
)
from fedjax_fm.engine.dealt import DealtPopulation


class Part(NamedTuple):
    """What one process gives of some clients' examples, and where all of them go.

    Attributes:
      arrays: {name: [room, ...]}, the rows of its own clients; the same room everywhere.
      owner: i64[n], the process of each row, in the order of the clients.
      row: i64[n], where the row lies there.
      offsets: i32[C + 1], where each client's rows begin in that order.
    """

    arrays: dict[str, np.ndarray]
    owner: np.ndarray
    row: np.ndarray
    offsets: np.ndarray


def part_of_all(population: DealtPopulation) -> Part:
    """This process's rows of the whole population.

    Args:
      population: of all hosts.

    Raises:
      ValueError: more examples than i32 can number.
    """
    check_rows(population.n_examples, STREAM)
    return _part(population, np.arange(population.n_clients), population.n_examples)


def part_of_cohort(population: DealtPopulation, ids: np.ndarray) -> Part:
    """This process's rows of a cohort, with room for the next power of two.

    Args:
      population: of all hosts.
      ids: i64[C].

    Raises:
      ValueError: more examples than i32 can number.
    """
    n_rows = int(sizes_of(population, ids).sum())
    check_rows(n_rows, SMALLER)
    return _part(population, ids, room_for(n_rows))


def _part(population: DealtPopulation, ids: np.ndarray, capacity: int) -> Part:
    """This process's rows of some clients; past the last row any other is repeated."""
    sizes = sizes_of(population, ids)
    owners = np.searchsorted(population.bounds, ids, side="right") - 1
    owner = np.repeat(owners, sizes)
    n_hosts = len(population.bounds) - 1
    each = np.bincount(owner, minlength=n_hosts)
    row = np.empty(len(owner), np.int64)
    for process in range(n_hosts):
        row[owner == process] = np.arange(each[process])
    me = jax.process_index()
    mine = np.asarray(ids)[owners == me] - population.bounds[me]
    missing = capacity - len(owner)
    return Part(
        arrays=rows_of(population.mine, mine, room_for(int(each.max()))),
        owner=np.pad(owner, (0, missing)),
        row=np.pad(row, (0, missing)),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
    )


def joined(part: Part, sharding: NamedSharding) -> DeviceData:
    """The rows of all processes in one order, whole on every device.

    Each device brings an equal share of its process's rows, and a gather sends them to
    all. Every process calls it, at the same place among its programs.

    Args:
      part: of this process.
      sharding: of the whole rows, over devices of all processes.
    """
    devices: Any = sharding.mesh.devices
    layout = _layout(part, list(devices.flat))
    index, offsets = hosts.on_all((layout.index, part.offsets), sharding)
    gather = jax.jit(_rows_at, out_shardings=sharding)
    arrays = {name: gather(layout.spread(x), index) for name, x in part.arrays.items()}
    return DeviceData(arrays, offsets)


def _rows_at(rows: jax.Array, index: jax.Array) -> jax.Array:
    return rows[index]


class _Layout(NamedTuple):
    """Which device brings which rows."""

    devices: list[Any]  # of all processes
    mine: list[int]  # places of this process's among them
    share: int  # rows that each brings
    index: np.ndarray  # i32[n], where each row lies among what all bring

    def spread(self, array: np.ndarray) -> jax.Array:
        """[devices * share, ...], of which this process gives its own devices' shares.

        Args:
          array: [room, ...].
        """
        rows = np.zeros((self.share * len(self.mine), *array.shape[1:]), array.dtype)
        rows[: len(array)] = array
        shares = np.split(rows, len(self.mine))
        here = [self.devices[place] for place in self.mine]
        parts = [jax.device_put(x, d) for x, d in zip(shares, here, strict=True)]
        shape = (self.share * len(self.devices), *array.shape[1:])
        mesh = Mesh(np.array(self.devices), ("all",))
        return jax.make_array_from_single_device_arrays(
            shape, NamedSharding(mesh, P("all")), parts
        )


def _layout(part: Part, devices: list[Any]) -> _Layout:
    """Shares of the rows; a process with more devices than others leaves some idle."""
    of_host: dict[int, list[int]] = {}
    for place, device in enumerate(devices):
        of_host.setdefault(device.process_index, []).append(place)
    fewest = min(map(len, of_host.values()))
    room = len(next(iter(part.arrays.values())))
    share = -(-room // fewest)
    places = np.array([of_host[process][:fewest] for process in sorted(of_host)])
    turn, within = np.divmod(part.row, share)
    index = places[part.owner, turn] * share + within
    return _Layout(
        devices=devices,
        mine=of_host[jax.process_index()],
        share=share,
        index=index.astype(np.int32),
    )
