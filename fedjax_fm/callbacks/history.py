"""The metrics of all rounds of a run, as columns and as rows of JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BYTES = ("uplink_bytes", "downlink_bytes")


class History:
    """Metrics {name: array[rounds]} that grow as rounds and callbacks add to them.

    Floats are f64; a column that has no value in a round is NaN there.

    Args:
      first: the round before the first row.
      metrics: of rounds first + 1, …, where a run goes on.

    Example:
      >>> history = History()
      >>> history.extend({"loss": np.array([0.5, 0.4])})
      >>> history.put({"eval_loss": 0.6}, "mine")
      >>> history.metrics["eval_loss"]
      array([nan, 0.6])
    """

    def __init__(self, first: int = 0, metrics: Mapping[str, np.ndarray] | None = None):
        self.first = first
        self._columns: dict[str, np.ndarray] = dict(metrics or {})
        self._of_rounds: set[str] = set()  # columns of rounds, not of callbacks

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """All columns, of equal length."""
        return dict(self._columns)

    @property
    def n_rows(self) -> int:
        """Rounds so far."""
        return _n_rows(self._columns)

    def extend(self, found: Mapping[str, np.ndarray]) -> None:
        """Adds the rows of some rounds.

        Args:
          found: {name: array[rounds]}, all of one length.
        """
        if not found:
            return
        before, more = self.n_rows, _n_rows(found)
        self._of_rounds |= set(found)
        for name in {**self._columns, **found}:
            old = self._columns.get(name, np.full(before, np.nan))
            new = _wide(found[name]) if name in found else np.full(more, np.nan)
            self._columns[name] = np.concatenate([old, new]) if before else new

    def put(self, found: Any, who: str) -> None:
        """Writes what a callback returned into the last row.

        Args:
          found: {name: number}, or None.
          who: the callback's name, for messages.

        Raises:
          TypeError: it is no mapping of names to numbers.
          ValueError: a name that the rounds or another callback use.
        """
        if found is None:
            return
        if not isinstance(found, Mapping):
            raise TypeError(
                f"expected {{name: number}} or None from the callback {who}, got "
                f"{type(found).__name__}"
            )
        for name, value in found.items():
            if name in self._of_rounds:
                raise ValueError(
                    f"{name!r}, a column of the callback {who}, is a metric of the rounds"
                )
            if np.ndim(value) != 0:
                raise TypeError(
                    f"expected a number as {name!r} of the callback {who}, got "
                    f"shape {np.shape(value)}"
                )
            column = self._columns.setdefault(name, np.full(self.n_rows, np.nan))
            if not np.isnan(column[-1]):
                raise ValueError(
                    f"two callbacks gave the column {name!r} in one round, {who} is the second"
                )
            column = column.copy()  # what was handed out stays as it was
            column[-1] = float(value)
            self._columns[name] = column


def rows_of(
    metrics: Mapping[str, np.ndarray], first: int, since: int = 0
) -> list[dict[str, Any]]:
    """One mapping for each round: its number, its loss, and its other columns by name.

    Args:
      metrics: {name: array[rounds]}.
      first: the round before the first row.
      since: rows of rounds up to this one are left out.

    Returns:
      Mappings without NaN, with the sums of bytes so far. The loss is None in a round
      without any client.

    Example:
      >>> rows_of({"loss": np.array([0.5, np.nan])}, first=3)
      [{'round': 4, 'loss': 0.5}, {'round': 5, 'loss': None}]
    """
    if not metrics:
        return []
    totals = {
        f"{name}_total": np.cumsum(metrics[name]) for name in BYTES if name in metrics
    }
    columns = {**metrics, **totals}
    names = ["loss", *sorted(columns.keys() - {"loss"})]
    rows = []
    for index in range(max(since - first, 0), len(metrics["loss"])):
        row: dict[str, Any] = {"round": first + index + 1}
        for name in names:
            value = columns[name][index].item()
            if not np.isnan(value):
                row[name] = value
            elif name == "loss":
                row[name] = None
        rows.append(row)
    return rows


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The inverse of `rows_of`.

    Args:
      rows: of consecutive rounds.

    Returns:
      {name: array[rounds]}.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [name for name in names if not _is_derived(name)]
    return {name: _column([row.get(name) for row in rows]) for name in kept}


def as_line(row: Mapping[str, Any]) -> str:
    """One row as a line of JSON.

    Args:
      row: from `rows_of`.

    Returns:
      The line, with its line break.
    """
    return json.dumps(row) + "\n"


def _n_rows(columns: Mapping[str, np.ndarray]) -> int:
    first = next(iter(columns.values()), ())
    return len(first)


def _is_derived(name: str) -> bool:
    is_total = name.endswith("_total") and name.removesuffix("_total") in BYTES
    return name == "round" or is_total


def _column(values: list[Any]) -> np.ndarray:
    if all(type(value) is int for value in values):
        return np.array(values, np.int64)
    known = [np.nan if value is None else value for value in values]
    return np.array(known, np.float64)


def _wide(values: np.ndarray) -> np.ndarray:
    """f64 or i64, as they come back from a file."""
    values = np.asarray(values)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
