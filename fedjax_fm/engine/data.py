"""A client's batches, read from the flat arrays on the device by index."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.population.permutation import permuted
from fedjax_fm.population.population import Population
from fedjax_fm.types import Batches, ClientData, Tree


class DeviceData(NamedTuple):
    """Examples, flat, on their way to or on the device.

    Of the whole population, or of one cohort in its order.
    """

    arrays: dict[str, Any]  # [n, ...]
    offsets: Any  # i32[places + 1]


def of_population(population: Population) -> DeviceData:
    """All examples as host arrays with i32 offsets.

    Refuses what the device would narrow in silence.
    """
    if population.n_examples > np.iinfo(np.int32).max:
        raise ValueError(
            f"at most {np.iinfo(np.int32).max} examples fit one device array, got "
            f"{population.n_examples}; stream them with data='host'"
        )
    return DeviceData(
        {k: np.asarray(v) for k, v in population.arrays.items()},
        population.offsets.astype(np.int32),
    )


def shapes_of(population: Population) -> DeviceData:
    """What `of_population` gives, by shape."""

    def shape(x):
        return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))

    offsets = jax.ShapeDtypeStruct((population.n_clients + 1,), np.int32)
    return DeviceData(
        {name: shape(array) for name, array in population.arrays.items()}, offsets
    )


def n_steps(
    n_examples: jax.Array, batches: Batches, most: jax.Array | None = None
) -> jax.Array:
    """i32[]: local steps of a client of that size, at most `most`; 0 for an empty one."""
    per_epoch = -(-n_examples // batches.batch_size)
    epochs, steps = batches.epochs, batches.steps
    steps = (
        per_epoch * epochs
        if epochs is not None
        else jnp.full_like(per_epoch, steps or 0)
    )
    steps = steps if most is None else jnp.clip(steps, 0, most)
    return jnp.where(n_examples > 0, steps, 0).astype(jnp.int32)


def n_processed(
    n_examples: jax.Array, batches: Batches, most: jax.Array | None = None
) -> jax.Array:
    """u32[]: rows in the batches of all local steps of a client of that size, which are
    `n_steps`.
    """
    n = n_examples.astype(jnp.uint32)
    steps = n_steps(n_examples, batches, most).astype(jnp.uint32)
    per_epoch = jnp.maximum(-(-n_examples // batches.batch_size), 1).astype(jnp.uint32)
    last_epoch = jnp.minimum(steps % per_epoch * jnp.uint32(batches.batch_size), n)
    return steps // per_epoch * n + last_epoch


def client_data(
    data: DeviceData,
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
    """The view of client `client`, whose examples lie at `place`.

    An inactive one has none and makes no steps.

    Local step s belongs to epoch s // ceil(n_k / batch_size), each epoch a fresh
    shuffle, its last batch short.
    """
    # An id past the end would be clamped by the gather and silently read the last client.
    safe = jnp.where(active, place, 0)
    start = data.offsets[safe]
    n = jnp.where(active, data.offsets[safe + 1] - start, 0)
    per_epoch = jnp.maximum(-(-n // batches.batch_size), 1)
    shuffle_key = derive(round_key, Purpose.SHUFFLE, client)

    def batch(step: jax.Array) -> tuple[Tree, jax.Array]:
        epoch, index = step // per_epoch, step % per_epoch
        positions = jnp.arange(batches.batch_size, dtype=jnp.int32)
        one_batch = (
            n_max <= batches.batch_size
        )  # covers every client: the same at every step, in any order
        if not one_batch:
            positions += index * batches.batch_size
        mask = positions < n
        positions = jnp.minimum(
            positions, jnp.maximum(n - 1, 0)
        )  # pads with a real row of this client
        if not one_batch:
            positions = permuted(
                jax.random.fold_in(shuffle_key, epoch), n, positions, n_max
            )
        rows = start + positions
        return {name: array[rows] for name, array in data.arrays.items()}, mask

    return ClientData(
        id=client,
        round=round_index,
        n_examples=n,
        n_steps=n_steps(n, batches, most_steps),
        batch=batch,
        repeat=jnp.int32(repeat),
    )
