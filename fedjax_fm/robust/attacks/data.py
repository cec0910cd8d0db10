"""Liars that train honestly, on data that lie.

Tolpegin, Truex, Gursoy, Liu, 2020, "Data Poisoning Attacks Against Federated Learning
Systems", arXiv 2007.08432, for flipped labels. A backdoor is `evaluation.with_trigger`,
put into liars' data by `poisoned`, too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population import Population

Arrays = Mapping[str, np.ndarray]


def poisoned(
    population: Population, liars: Sequence[int], change: Callable[[Arrays], Arrays]
) -> Population:
    """A population in which some clients' examples are changed.

    Args:
      population: of honest clients.
      liars: ids.
      change: `{column: [n, ...]} -> {column: [n, ...]}`, such as `relabelled(...)` or
        `functools.partial(evaluation.with_trigger, trigger=...)`.

    Returns:
      A population whose other clients have what they had.

    Raises:
      TypeError, ValueError: no such client, or columns of another form.

    Example:
      >>> clients = [{"label": np.array([0, 2])}, {"label": np.array([1])}]
      >>> population = Population.from_clients(clients)
      >>> found = poisoned(population, [0], relabelled([2, 1, 0]))
      >>> found.arrays["label"].tolist()
      [2, 0, 1]
    """
    arrays = {name: np.array(x) for name, x in population.arrays.items()}
    n_clients = len(population.offsets) - 1
    for client in liars:
        checks.whole("liars", client, least=0, most=n_clients - 1)
        start, end = population.offsets[client], population.offsets[client + 1]
        own = {name: x[start:end].copy() for name, x in arrays.items()}
        found = change(own)
        for name, x in arrays.items():
            new = np.asarray(found.get(name))
            if new.shape != own[name].shape or new.dtype != own[name].dtype:
                raise ValueError(
                    f"expected the change to keep column {name!r} of client {client} as "
                    f"{own[name].dtype}{list(own[name].shape)}, got "
                    f"{new.dtype}{list(new.shape)}"
                )
            x[start:end] = new
    return Population(arrays, population.offsets)


def relabelled(
    table: Sequence[int] | np.ndarray, *, label: str = "label"
) -> Callable[[Arrays], Arrays]:
    """A change of labels, y -> table[y].

    Flipped labels of C classes are the table C - 1, ..., 0; of a language model a
    permutation of the vocabulary that moves tokens of answers alone. Labels below zero,
    which no loss counts, stay.

    Args:
      table: [classes], what each label becomes.
      label: the column, whole numbers of any shape.

    Returns:
      A change for `poisoned`.

    Raises:
      ValueError: a table that is no list of whole numbers; later, no such column, or a
        label outside of the table.

    Example:
      >>> change = relabelled([2, 1, 0], label="y")
      >>> change({"y": np.array([0, 1, 2, -100])})["y"].tolist()
      [2, 1, 0, -100]
    """
    table = np.asarray(table)
    if table.ndim != 1 or not np.issubdtype(table.dtype, np.integer) or not table.size:
        raise ValueError(f"expected a list of labels, got table={table!r}")

    def change(arrays: Arrays) -> dict[str, Any]:
        if label not in arrays:
            raise ValueError(f"expected a column {label!r}, got {sorted(arrays)}")
        old = arrays[label]
        if old.max(initial=0) >= len(table):
            raise ValueError(
                f"expected labels below {len(table)}, those of the table, got {old.max()}"
            )
        new = np.where(old < 0, old, table[np.maximum(old, 0)])
        return {**arrays, label: new.astype(old.dtype)}

    return change
