"""Digests of arrays, also of those whose rows lie on several hosts."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_fm.engine import hosts

N_BYTES = 32


def of_arrays(arrays: Mapping[str, Any]) -> np.ndarray:
    """u8[32] of names, dtypes, shapes and bytes.

    Args:
      arrays: {name: array}, each whole in this process.
    """
    hashed = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        array = np.ascontiguousarray(value)
        head = f"{name} {array.dtype} {np.shape(value)}"
        hashed.update(head.encode())
        as_bytes = array.reshape(-1).view(np.uint8)
        hashed.update(as_bytes.data)
    return np.frombuffer(hashed.digest(), np.uint8)


def of_rows(array: Any) -> np.ndarray:
    """u8[32], the same however the rows are dealt to devices and processes.

    The sum of the digests of all rows, each with its number, modulo 2^256. All processes
    call this together, each reads its own rows.

    Args:
      array: [n, ...], of numpy or jax.
    """
    total = 0
    for first, rows in _parts(array):
        for number, row in enumerate(np.ascontiguousarray(rows), first):
            hashed = hashlib.sha256(number.to_bytes(8, "little") + row.tobytes())
            total += int.from_bytes(hashed.digest(), "little")
    each = hosts.from_all(_as_bytes(total))
    return _as_bytes(sum(int.from_bytes(one.tobytes(), "little") for one in each))


def _as_bytes(number: int) -> np.ndarray:
    modulus = 1 << 8 * N_BYTES
    return np.frombuffer((number % modulus).to_bytes(N_BYTES, "little"), np.uint8)


def _parts(array: Any) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows) of this process, no row twice in all of them."""
    if not isinstance(array, jax.Array):
        yield 0, np.asarray(array)
        return
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            yield shard.index[0].start or 0, np.asarray(shard.data)
