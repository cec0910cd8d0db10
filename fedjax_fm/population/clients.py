"""Packs the arrays of many clients into flat ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_fm.population.values import checked_form


def packed(
    clients: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, np.ndarray], list[int]]:
    """The arrays of all clients one after the other, and how many examples each has.

    A client without examples takes dtypes and shapes from the others, so that
    `np.array([])`, which NumPy makes float64, does not change the labels of the others.
    Among these dtypes must agree: NumPy would widen int32 beside float32 to float64,
    and int64 beside uint64, too.

    Args:
      clients: {name: array[n_k, ...]} of each client.

    Returns:
      {name: [n, ...]} in the order of client 0, and the sizes.

    Raises:
      TypeError: no sequence of mappings.
      ValueError: no client, or clients whose names, lengths, dtypes or shapes differ.
    """
    listed = _listed(clients)
    checked = [_checked_client(k, client) for k, client in enumerate(listed)]
    names = list(checked[0])
    sizes = []
    for k, client in enumerate(checked):
        if set(client) != set(names):
            raise ValueError(
                f"client {k} has arrays {_named(client)}, client 0 has {_named(names)}"
            )
        lengths = {name: len(client[name]) for name in names}
        different = set(lengths.values())
        if len(different) > 1:
            raise ValueError(
                f"client {k}: arrays must share their first dimension, got lengths "
                f"{lengths}"
            )
        sizes.append(different.pop() if different else 0)
    full = [k for k, size in enumerate(sizes) if size > 0] or [0]
    _check_alike(checked, full)
    arrays = {name: np.concatenate([checked[k][name] for k in full]) for name in names}
    return arrays, sizes


def _listed(clients: Any) -> list[Any]:
    """The clients, or a TypeError that says how to make a list of what was given."""
    if isinstance(clients, Mapping):
        inner = list(clients.values())
        if inner and all(isinstance(client, Mapping) for client in inner):
            raise TypeError(
                "expected a sequence of clients, got a mapping of them; pass "
                "list(clients.values())"
            )
        raise TypeError(
            "expected a sequence of clients, got one mapping of arrays; for flat "
            "arrays: from_arrays"
        )
    try:
        clients = list(clients)
    except TypeError:
        raise TypeError(f"expected a sequence of clients, got {clients!r}") from None
    if not clients:
        raise ValueError(
            "a population needs at least one client, got an empty sequence"
        )
    return clients


def _checked_client(k: int, client: Any) -> dict[str, np.ndarray]:
    """A client's arrays; those without rows may hold anything."""
    if not isinstance(client, Mapping):
        raise TypeError(
            f"client {k}: expected a mapping from names to arrays, got a "
            f"{type(client).__name__}"
        )
    arrays = {}
    for name, array in client.items():
        if _is_empty(array):
            arrays[name] = np.asarray(array)
        else:
            arrays[name] = checked_form(name, array, f"client {k}: array {name!r}")
    return arrays


def _is_empty(array: Any) -> bool:
    """Whether an array or a list has no rows."""
    if isinstance(array, np.ndarray):
        return array.ndim > 0 and len(array) == 0
    return (
        isinstance(array, Sequence)
        and not isinstance(array, (str, bytes))
        and len(array) == 0
    )


def _check_alike(clients: list[dict[str, np.ndarray]], full: list[int]) -> None:
    """Raises ValueError unless clients with examples agree in dtypes and shapes."""
    first = clients[full[0]]
    for k in full[1:]:
        for name, array in clients[k].items():
            if array.shape[1:] != first[name].shape[1:]:
                raise ValueError(
                    f"client {k}: {name!r} has examples of shape "
                    f"{array.shape[1:]}, client {full[0]} of "
                    f"{first[name].shape[1:]}"
                )
            if array.dtype != first[name].dtype:
                raise ValueError(
                    f"client {k}: {name!r} has dtype {array.dtype}, client "
                    f"{full[0]} {first[name].dtype}; give all clients one dtype "
                    "(array.astype)"
                )


def _named(names: Iterable[Any]) -> list[Any]:
    """Names in an order for messages."""
    return sorted(names, key=str)
