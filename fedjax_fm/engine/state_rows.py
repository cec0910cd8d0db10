"""Rows of the clients' states, from where they lie to where they are computed and back.

Where devices share the states, each holds an equal part of every store. A client is
computed where there is room, so its row travels twice a round, from the device that
holds it and back: of C clients on n devices, each device sends and receives about C/n
rows each way. XLA's partitioner would send the rows of the whole cohort to every device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fedjax_fm.engine.devices import CLIENTS
from fedjax_fm.engine.parts import Engine
from fedjax_fm.types import Tree

# Machines without the exchange of single rows, by JAX's name, and the most devices that
# have it: libtpu refuses it beyond ("limited ICI routing").
MOST_DEVICES = {"TPU v5 lite": 16, "cpu": 0}


class Route(NamedTuple):
    """Which rows a device passes to the n devices, itself included, and which it gets.

    Leaves i32[n * S], S entries for each of the n; see `jax.lax.ragged_all_to_all`.
    """

    input_offsets: jax.Array  # rows of mine
    send_sizes: jax.Array  # 1 where that row goes to that device, else 0
    output_offsets: jax.Array  # where it will lie there
    recv_sizes: jax.Array  # 1 where that device sends me one


def can_travel(devices: Sequence[Any]) -> bool:
    """Whether these devices can exchange single rows.

    CPUs cannot, nor slices of v5e with more than 16 chips; there XLA's partitioner moves
    the rows, through every device.

    Args:
      devices: of a mesh.
    """
    most = MOST_DEVICES.get(devices[0].device_kind, len(devices))
    return len(devices) <= most


def travel(engine: Engine) -> bool:
    """Whether rows pass from device to device one by one.

    Args:
      engine: of the run.
    """
    shares = engine.shares_states and engine.plan.n_devices > 1
    return shares and can_travel(list(engine.mesh.devices.flat))


def taken(engine: Engine, stores: Tree, places: jax.Array) -> Tree:
    """The rows at some places, on the devices that ask for them.

    Args:
      engine: of the run.
      stores: leaves [n_rows, ...]; where rows travel, as many on each device.
      places: i32[D, n_blocks, W], of each device's slots.

    Returns:
      Leaves [D, n_blocks, W, ...].
    """
    if not travel(engine):

        def rows(store):
            return jnp.take(store, places, axis=0, mode="clip")

        return jax.tree.map(rows, stores)
    return _on_each_device(engine, _taken, (P(CLIENTS), P()))(stores, places)


def put(engine: Engine, stores: Tree, places: jax.Array, rows: Tree) -> Tree:
    """The stores with rows written at some places.

    Args:
      engine: of the run.
      stores: leaves [n_rows, ...]; where rows travel, as many on each device.
      places: i32[D, n_blocks, W], each at most once; a row for a place past the store is
        dropped.
      rows: leaves [D, n_blocks, W, ...].
    """
    if travel(engine):
        specs = (P(CLIENTS), P(), P(CLIENTS))
        return _on_each_device(engine, _put, specs)(stores, places, rows)

    def written(store, new):
        return _written(store, places, new)

    return jax.tree.map(written, stores, rows)


@functools.partial(jax.jit, inline=True)  # traced once for all leaves of a shape
def _written(store: jax.Array, places: jax.Array, rows: jax.Array) -> jax.Array:
    """One leaf with rows written; what lies past its end is dropped."""
    return store.at[places].set(rows, mode="drop")


def _on_each_device(engine: Engine, of_leaf: Callable, specs: tuple) -> Callable:
    """A function of (store, places, ...) for one leaf, on every device, for all leaves."""

    def of_leaves(stores: Tree, places: jax.Array, *rest: Tree) -> Tree:
        def one(store, *others):
            return of_leaf(store, places, *others)

        return jax.tree.map(one, stores, *rest)

    return jax.shard_map(
        of_leaves,
        mesh=engine.mesh,
        in_specs=specs,
        out_specs=P(CLIENTS),
        check_vma=False,
    )


def _taken(store: jax.Array, places: jax.Array) -> jax.Array:
    """`taken` for one leaf, on one device."""
    n, *room = places.shape
    me = jax.lax.axis_index(CLIENTS)
    holder, row = jnp.divmod(places.reshape(n, -1), store.shape[0])  # [n, S]
    seats = jnp.broadcast_to(jnp.arange(row.shape[1]), row.shape)
    found = jnp.zeros((row.shape[1], *store.shape[1:]), store.dtype)
    route = _flat(
        input_offsets=row,
        send_sizes=holder == me,
        output_offsets=seats,
        recv_sizes=holder[me] == jnp.arange(n)[:, None],
    )
    found = jax.lax.ragged_all_to_all(store, found, *route, axis_name=CLIENTS)
    return found.reshape(1, *room, *store.shape[1:])


def _put(store: jax.Array, places: jax.Array, rows: jax.Array) -> jax.Array:
    """`put` for one leaf, on one device.

    What comes in lies in a row first, and is then written: an exchange that wrote into
    the store itself would work on a copy of it.
    """
    n, held = places.shape[0], store.shape[0]
    me = jax.lax.axis_index(CLIENTS)
    holder, row = jnp.divmod(places.reshape(n, -1), held)  # [n, S]
    seats = jnp.broadcast_to(jnp.arange(row.shape[1]), row.shape)
    turn = _turns(holder.reshape(-1)).reshape(row.shape)
    route = _flat(
        input_offsets=seats,
        send_sizes=holder[me] == jnp.arange(n)[:, None],
        output_offsets=jnp.broadcast_to(turn[me], row.shape),
        recv_sizes=holder == me,
    )
    rows = rows.reshape(-1, *store.shape[1:])
    room = min(row.size, held)  # no place is written twice
    found = jnp.zeros((room, *store.shape[1:]), store.dtype)
    found = jax.lax.ragged_all_to_all(rows, found, *route, axis_name=CLIENTS)
    turn = jnp.where(holder == me, turn, room)
    where = jnp.full(room, held).at[turn.reshape(-1)].set(row.reshape(-1), mode="drop")
    return _written(store, where, found)


def _turns(holder: jax.Array) -> jax.Array:
    """i32[k]: how many before each entry have the same holder.

    Args:
      holder: i32[k].
    """
    order = jnp.argsort(holder, stable=True)
    in_order = holder[order]
    first = jnp.searchsorted(in_order, in_order)  # of the same holder
    turns = jnp.arange(holder.size) - first
    return jnp.zeros_like(turns).at[order].set(turns)


def _flat(**parts: jax.Array) -> Route:
    flat = {name: x.astype(jnp.int32).reshape(-1) for name, x in parts.items()}
    return Route(**flat)
