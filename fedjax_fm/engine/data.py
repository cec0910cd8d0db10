"""Examples on the device, and a client's batches read from them by index."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.population.permutation import permuted
from fedjax_fm.population.population import Population
from fedjax_fm.types import Batches, ClientData, Tree

MOST_ROWS = np.iinfo(np.int32).max
STREAM, SMALLER = "stream them with data='host'", "take a smaller cohort"


class DeviceData(NamedTuple):
    """Examples, flat, on their way to or on the device.

    They are those of the whole population, or of one cohort in its order.
    """

    arrays: dict[str, Any]  # [n, ...]
    offsets: Any  # i32[places + 1]


def of_population(population: Population) -> DeviceData:
    """All examples as host arrays with i32 offsets.

    Args:
      population: the clients' data.

    Raises:
      ValueError: more examples than i32 can number, which the device would narrow.
    """
    check_rows(population.n_examples, STREAM)
    arrays = {name: np.asarray(array) for name, array in population.arrays.items()}
    return DeviceData(arrays, population.offsets.astype(np.int32))


def shapes_of(population: Any) -> DeviceData:
    """What `of_population` gives, by shape.

    Args:
      population: the clients' data, which may be dealt over hosts.
    """

    def shape(x):
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((population.n_examples, *x.shape[1:]), dtype)

    arrays = {name: shape(array) for name, array in population.arrays.items()}
    offsets = jax.ShapeDtypeStruct((population.n_clients + 1,), np.int32)
    return DeviceData(arrays, offsets)


def check_rows(n: int, cure: str) -> None:
    """Refuses more examples than i32 can number, which the device would narrow.

    Args:
      n: examples.
      cure: what to do instead, for the message.
    """
    if n > MOST_ROWS:
        raise ValueError(
            f"at most {MOST_ROWS} examples fit one device array, got {n}; {cure}"
        )


def read_cohort(population: Population, ids: np.ndarray) -> DeviceData:
    """The examples of these clients, one client after the other, as host arrays.

    Rows are padded to the next power of two by zeros that no offset reaches, so that a
    run over cohorts of changing size compiles a few programs, not one a round.

    Args:
      population: the clients' data, which may be memory-mapped.
      ids: i64[n].

    Raises:
      ValueError: more examples than i32 can number.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes_of(population, ids))])
    n = int(offsets[-1])
    check_rows(n, SMALLER)
    arrays = rows_of(population, ids, room_for(n))
    return DeviceData(arrays, offsets.astype(np.int32))


def sizes_of(population: Any, ids: np.ndarray) -> np.ndarray:
    """i64[C], examples of some clients, without a look at the others.

    Args:
      population: the clients' data, which may be dealt over hosts.
      ids: i64[C].
    """
    return population.offsets[ids + 1] - population.offsets[ids]


def rows_of(
    population: Population, ids: np.ndarray, room: int
) -> dict[str, np.ndarray]:
    """The rows of some clients, one client after the other, and zeros behind them.

    Args:
      population: the clients' data, which may be memory-mapped.
      ids: i64[C].
      room: rows that come out, at least as many as the clients have.

    Returns:
      {name: [room, ...]}.
    """
    starts, ends = population.offsets[ids], population.offsets[ids + 1]
    found = {}
    for name, whole in population.arrays.items():
        rows = np.zeros((room, *whole.shape[1:]), whole.dtype)
        filled = 0
        for start, end in zip(starts, ends, strict=True):
            n = end - start
            rows[filled : filled + n] = whole[start:end]
            filled += n
        found[name] = rows
    return found


def room_for(n: int) -> int:
    """The next power of two, so that changing numbers of rows have few shapes.

    Args:
      n: rows.
    """
    return 1 << max(n - 1, 0).bit_length()


def n_steps(
    n_examples: jax.Array, batches: Batches, most: jax.Array | None = None
) -> jax.Array:
    """i32[]: local steps of a client of that size; 0 for an empty one.

    Args:
      n_examples: i32[].
      batches: how it walks its data.
      most: i32[], what a straggler manages; None where nothing limits it.
    """
    per_epoch = -(-n_examples // batches.batch_size)
    if batches.epochs is not None:
        steps = per_epoch * batches.epochs
    else:
        steps = jnp.full_like(per_epoch, batches.steps or 0)
    if most is not None:
        steps = jnp.clip(steps, 0, most)
    return jnp.where(n_examples > 0, steps, 0).astype(jnp.int32)


def n_processed(
    n_examples: jax.Array, batches: Batches, most: jax.Array | None = None
) -> jax.Array:
    """u32[]: rows in the batches of all local steps; arguments as for `n_steps`."""
    n = n_examples.astype(jnp.uint32)
    steps = n_steps(n_examples, batches, most).astype(jnp.uint32)
    per_epoch = jnp.maximum(-(-n_examples // batches.batch_size), 1).astype(jnp.uint32)
    begun = steps % per_epoch * jnp.uint32(batches.batch_size)
    return steps // per_epoch * n + jnp.minimum(begun, n)


def client_data(
    data: DeviceData,
    *,
    client: jax.Array,
    place: jax.Array,
    active: jax.Array,
    round_index: jax.Array,
    batches: Batches,
    round_key: jax.Array,
    n_max: int,
    most_steps: jax.Array | None = None,
    repeat: jax.Array | int = 0,
) -> ClientData:
    """What one client sees of the world.

    Local step s belongs to epoch s // ceil(n_k / batch_size), each epoch a fresh
    shuffle, its last batch short.

    Args:
      data: all examples.
      client: i32[], its id, which names its shuffles.
      place: i32[], where its examples lie.
      active: bool[]; an inactive client has no example and makes no step.
      round_index: i32[].
      batches: how it walks its data.
      round_key: the round's.
      n_max: examples of the largest client.
      most_steps: i32[], what a straggler manages; None where nothing limits it.
      repeat: i32[], passage of a `Repeat`.
    """
    # An id past the end would be clamped by the gather and silently read the last client.
    safe = jnp.where(active, place, 0)
    start = data.offsets[safe]
    n = jnp.where(active, data.offsets[safe + 1] - start, 0)
    shuffle_key = derive(round_key, Purpose.SHUFFLE, client)
    return ClientData(
        id=client,
        round=round_index,
        n_examples=n,
        n_steps=n_steps(n, batches, most_steps),
        batch=_batches(data, start, n, batches.batch_size, n_max, shuffle_key),
        repeat=jnp.int32(repeat),
    )


def _batches(
    data: DeviceData, start: Any, n: Any, batch_size: int, n_max: int, shuffle_key: Any
) -> Callable[[jax.Array], tuple[Tree, jax.Array]]:
    """`step i32[] -> (batch, mask bool[B])` of the n rows from `start` on."""
    per_epoch = jnp.maximum(-(-n // batch_size), 1)
    # one batch covers every client: the same at every step, in any order
    is_one_batch = n_max <= batch_size

    def batch(step: jax.Array) -> tuple[Tree, jax.Array]:
        epoch, index = step // per_epoch, step % per_epoch
        positions = jnp.arange(batch_size, dtype=jnp.int32)
        if not is_one_batch:
            positions += index * batch_size
        mask = positions < n
        last = jnp.maximum(n - 1, 0)
        positions = jnp.minimum(positions, last)  # pads with a real row of this client
        if not is_one_batch:
            epoch_key = jax.random.fold_in(shuffle_key, epoch)
            positions = permuted(epoch_key, n, positions, n_max)
        rows = start + positions
        return {name: array[rows] for name, array in data.arrays.items()}, mask

    return batch
