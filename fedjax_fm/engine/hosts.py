"""Several processes that run one program, as the hosts of a pod do.

Every process makes the same population, backbone and simulator, and has devices of its
own; the mesh holds the devices of all.
"""

import hashlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fedjax_fm.types import Tree

PACKAGES = ("fedjax-fm", "jax", "jaxlib", "flax", "optax", "numpy")


def are_several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def on_all(tree: Tree, sharding: Any) -> Tree:
    """Arrays that every host has, on the devices of all.

    Each host puts what its own devices hold, and nothing is sent. `jax.device_put`
    would send every array through all devices, to compare what the hosts have, and take
    NaN for a difference.

    Args:
      tree: arrays of numpy or jax.
      sharding: one for all leaves, or a tree of them.
    """

    def one(leaf: Any, place: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, place)
        here = np.asarray(leaf, jnp.result_type(leaf))
        return jax.make_array_from_callback(
            here.shape, place, lambda index: here[index]
        )

    return jax.tree.map(one, tree, jax.tree.broadcast(sharding, tree))


def whole(array: jax.Array) -> np.ndarray:
    """An array whose parts may lie on several hosts, in the memory of each.

    Args:
      array: of any shape, of numbers.
    """
    if not is_in_parts(array):
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def here(tree: Tree) -> Tree:
    """A tree on a device of each process, for what is not done by all of them together.

    Args:
      tree: of arrays whose parts may lie on several hosts. Of one process it stays.
    """
    if not are_several():
        return tree

    def one(leaf: Any) -> Any:
        return jnp.asarray(whole(leaf)) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(one, tree)


def first_says(value: int) -> int:
    """The number that process 0 has, in all processes: for what depends on a clock.

    Args:
      value: this process's.
    """
    if not are_several():
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def least_of(n_bytes: int) -> int:
    """The smallest of what the processes have, whose layouts have to be the same.

    Args:
      n_bytes: that this process has; of several, rounded down to whole MiB.
    """
    if not are_several():
        return n_bytes
    each = multihost_utils.process_allgather(np.int32(n_bytes >> 20))
    return int(np.min(each)) << 20


def from_all(array: np.ndarray) -> np.ndarray:
    """The array of each process, [processes, ...], in all of them.

    Args:
      array: this process's, of one shape in all.
    """
    if not are_several():
        return array[None]
    return np.asarray(multihost_utils.process_allgather(array))


def is_in_parts(leaf: Any) -> bool:
    """Whether an array's parts lie on several hosts, none of which has all of it.

    Args:
      leaf: of numpy or jax.
    """
    if not isinstance(leaf, jax.Array):
        return False
    return not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def any_says(wish: bool) -> bool:
    """Whether one of the processes has this wish, to stop for example.

    Args:
      wish: this process's.
    """
    if not are_several():
        return wish
    return bool(np.any(multihost_utils.process_allgather(np.bool_(wish))))


def meet(where: str) -> None:
    """Waits until all processes have come here.

    Args:
      where: a name for it, the same in all.
    """
    if are_several():
        multihost_utils.sync_global_devices(where)


def check_agreement(what: Mapping[str, Any]) -> None:
    """Refuses processes that are not about the same.

    Each sends a digest of 32 bytes for each thing; nothing else travels.

    Args:
      what: {name: tree of arrays, or text}, in the same order everywhere.

    Raises:
      ValueError: names what differs, and in which processes; raised in all of them.
    """
    if not are_several():
        return
    here = np.stack([_digest(value) for value in what.values()])
    found = np.asarray(multihost_utils.process_allgather(here))
    different = (found != found[0]).any(axis=-1)  # [processes, things]
    problems = [
        f"{name} of process {', '.join(map(str, np.flatnonzero(column)))}"
        for name, column in zip(what, different.T, strict=True)
        if column.any()
    ]
    if problems:
        raise ValueError(
            f"the processes are not about the same: {'; '.join(problems)} differ from "
            "process 0. Every host needs the same data, weights, seed and packages"
        )


def versions() -> str:
    """The versions of what computes."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)


def _digest(value: Any) -> np.ndarray:
    """u8[32] of a text, or of the names, dtypes, shapes and bytes of a tree's leaves."""
    hashed = hashlib.sha256()
    if isinstance(value, str):
        hashed.update(value.encode())
        return np.frombuffer(hashed.digest(), np.uint8)
    for path, leaf in jax.tree.leaves_with_path(value):
        name = jax.tree_util.keystr(path)
        if is_in_parts(leaf):  # no host has all of it: its head has to do
            hashed.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
            continue
        array = np.ascontiguousarray(_as_numbers(leaf))
        hashed.update(f"{name} {array.dtype} {array.shape}".encode())
        hashed.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(hashed.digest(), np.uint8)


def _as_numbers(leaf: Any) -> np.ndarray:
    """The leaf as numpy has it; a key as its data."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
