"""Splits that keep what belongs together on one side: groups, clients, a client's rows.

Three levels, from the outside in: whole groups go to train or test (`split_by_group`),
whole clients go to train, validation or held-out (`split_clients`), and a client's rows
go to local train or local test (`split_within`). Every result is sorted and depends on
nothing but the arguments.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.column_values import as_array
from fedjax_fm.population.partition_checks import (
    categories,
    check_seed,
    rows_by_category,
)


def split_by_group(
    groups: np.ndarray,
    fractions: Mapping[str, float],
    seed: int,
    strata: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Deals whole groups to splits whose shares of the rows come close to `fractions`.

    The groups of a stratum are ranked by SHA-256 of "<seed>/<group>" and dealt one by
    one to the split that lacks most rows; the strata follow each other in ascending
    order and hand on what a split lacks or has too much. So the split depends on the
    seed and on the names and sizes of the groups, not on the order of rows. A split
    exceeds its share of all rows by less than the rows of the largest group.

    Args:
      groups: [rows], which group a row belongs to (str, or any values of one type).
      fractions: name of the split -> its share of the rows; positive, sum 1. If two
        splits lack equally many rows, the one named first is served.
      seed: not negative.
      strata: [rows], a property of the group such as its domain: the shares are kept
        within each of them. None for one stratum.

    Returns:
      name -> int64[rows of the split], ascending; every row in exactly one split, no
      split empty.

    Raises:
      ValueError: fractions that are not positive or do not sum to 1, a group in two
        strata, arrays of different length, or a split that stays empty because there
        are too few groups.

    Example:
      >>> groups = np.array(["a", "a", "b", "c", "d", "d"])
      >>> splits = split_by_group(groups, {"train": 0.7, "test": 0.3}, seed=0)
      >>> splits["train"].tolist(), splits["test"].tolist()
      ([2, 3, 4, 5], [0, 1])
    """
    _check_fractions(fractions)
    check_seed(seed)
    columns = {"groups": groups}
    columns["strata"] = np.zeros(len(groups), np.int64) if strata is None else strata
    names, codes = categories(columns, "groups")
    strata_names, strata_codes = categories(columns, "strata")
    n_groups, n_rows_in_all = len(names), len(codes)
    rows = rows_by_category(codes, n_groups) if n_rows_in_all else []
    sizes = [len(rows_of_group) for rows_of_group in rows]
    stratum_of_group = _stratum_of_groups(rows, strata_codes, names, strata_names)

    def rank(group: int) -> bytes:
        return _rank(seed, names[group])

    chosen: dict[str, list[np.ndarray]] = {name: [] for name in fractions}
    lacking = dict.fromkeys(fractions, 0.0)
    ranked = sorted(range(n_groups), key=rank)
    for stratum in range(len(strata_names)):
        members = [group for group in ranked if stratum_of_group[group] == stratum]
        n_rows = sum(sizes[group] for group in members)
        lacking = {
            name: lacking[name] + fraction * n_rows
            for name, fraction in fractions.items()
        }
        for group in members:
            neediest = max(lacking, key=lacking.__getitem__)
            chosen[neediest].append(rows[group])
            lacking[neediest] -= sizes[group]
    for name, parts in chosen.items():
        if not parts:
            raise ValueError(
                f"split {name!r} with fraction {fractions[name]} stays empty: "
                f"{n_groups} groups with up to {max(sizes, default=0)} of "
                f"{n_rows_in_all} rows; raise its fraction or pass more groups"
            )
    joined = {name: np.concatenate(parts) for name, parts in chosen.items()}
    return {name: np.sort(rows) for name, rows in joined.items()}


def split_clients(
    num_clients: int, counts: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    """Draws which clients train and which are held out.

    Args:
      num_clients: number of clients.
      counts: name of the split -> number of clients in it, at least 1; they add up to
        `num_clients`.
      seed: not negative.

    Returns:
      name -> int64[counts[name]], ids in [0, num_clients), ascending; every client in
      exactly one split.

    Raises:
      ValueError: a count < 1 (leave the name out instead), or counts that do not add
        up.

    Example:
      >>> split_clients(5, {"train": 3, "held_out": 2}, seed=42)
      {'train': array([2, 3, 4]), 'held_out': array([0, 1])}
    """
    checks.whole("num_clients", num_clients, least=1)
    check_seed(seed)
    for name, count in counts.items():
        checks.whole(f"counts[{name!r}]", count, least=1)
    sizes = list(counts.values())
    if sum(sizes) != num_clients:
        raise ValueError(
            f"expected counts that add up to num_clients={num_clients}, got "
            f"{dict(counts)} with a sum of {sum(sizes)}"
        )
    ids = np.random.default_rng(seed).permutation(num_clients)
    parts = np.split(ids.astype(np.int64), np.cumsum(sizes)[:-1])
    return {name: np.sort(part) for name, part in zip(counts, parts, strict=True)}


def split_within(
    indices: Sequence[int] | np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits a client's own rows into local train and local test.

    Args:
      indices: [rows], the client's row numbers, each once, in any order.
      fraction: share of the rows for local *train*, in (0, 1); rounded to whole rows,
        half up.
      seed: not negative.

    Returns:
      (train, test): int64 row numbers, ascending. With two or more rows both have at
      least one; a single row goes to train; no row gives two empty arrays.

    Raises:
      ValueError: fraction outside (0, 1), or a row that occurs twice.

    Example:
      >>> split_within([10, 11, 12, 13], 0.75, seed=42)
      (array([11, 12, 13]), array([10]))
    """
    checks.real("fraction", fraction, above=0, below=1)
    check_seed(seed)
    rows, times = np.unique(_row_numbers("indices", indices), return_counts=True)
    if (times > 1).any():
        again = times > 1
        raise ValueError(
            f"expected each row once, got row {rows[again][0]} {times[again][0]} times"
        )
    n_rows = len(rows)
    n_train = math.floor(fraction * n_rows + 0.5)
    if n_rows >= 2:
        n_train = min(max(n_train, 1), n_rows - 1)
    elif n_rows == 1:
        n_train = 1
    mixed = np.random.default_rng(seed).permutation(rows)
    return np.sort(mixed[:n_train]), np.sort(mixed[n_train:])


def assert_disjoint(**named_index_arrays: np.ndarray) -> None:
    """Raises ValueError if two of the splits share a row.

    Args:
      **named_index_arrays: row numbers of each split; the message names both splits and
        one shared row.

    Example:
      >>> assert_disjoint(train=np.array([0, 1]), test=np.array([2]))
    """
    numbers = {
        name: _row_numbers(name, rows) for name, rows in named_index_arrays.items()
    }
    for (first, rows), (second, other) in itertools.combinations(numbers.items(), 2):
        shared = np.intersect1d(rows, other)
        if shared.size:
            raise ValueError(
                f"splits {first!r} and {second!r} share {shared.size} rows, for "
                f"example row {shared[0]}"
            )


def _row_numbers(name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64[rows]; refuses masks and fractions, which would select other rows."""
    numbers = as_array(name, rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise TypeError(
            f"expected {name} to be a list of whole row numbers, got dtype "
            f"{numbers.dtype} and shape {numbers.shape}; turn a mask into row "
            "numbers with np.flatnonzero(mask)"
        )
    if numbers.size and numbers.min() < 0:
        raise ValueError(f"expected row numbers >= 0 in {name}, got {numbers.min()}")
    return numbers.astype(np.int64)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    """Raises ValueError unless fractions are positive and sum to 1."""
    for name, fraction in fractions.items():
        try:
            checks.real(f"fractions[{name!r}]", fraction, above=0)
        except ValueError as error:
            raise ValueError(
                f"expected positive fractions; leave an unused split out: {error}"
            ) from None
    total = sum(fractions.values())
    if not math.isclose(total, 1.0, abs_tol=1e-9):
        raise ValueError(
            f"expected fractions that sum to 1, got {dict(fractions)} with a sum of "
            f"{total}"
        )


def _rank(seed: int, group: object) -> bytes:
    """A hash of a group's name, by which groups are ordered."""
    name = f"{seed}/{group}"
    return hashlib.sha256(name.encode()).digest()


def _stratum_of_groups(
    rows: list[np.ndarray],
    strata_codes: np.ndarray,
    names: np.ndarray,
    strata_names: np.ndarray,
) -> list[int]:
    """The one stratum of each group."""
    found = []
    for group, rows_of_group in enumerate(rows):
        codes = np.unique(strata_codes[rows_of_group])
        if len(codes) > 1:
            raise ValueError(
                f"expected each group in one stratum, got group {names[group]!s} in "
                f"{strata_names[codes].tolist()}; a stratum must be a property of the "
                "whole group"
            )
        found.append(int(codes[0]))
    return found
