"""A score client by client: the mean over clients, the worst tenth, those held out."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks


class ClientScores(NamedTuple):
    """A score of every client, and means in which each client counts once.

    A client for which a function of row numbers gives NaN, as a correlation over one
    row does, is left out of the means.

    Attributes:
      each: {client: score}, of all clients.
      mean: of the clients that took part.
      worst_decile: of the worst tenth of those, at least one.
      held_out: mean of the clients that did not take part; NaN without any.
      held_out_worst_decile: of the worst tenth of those.
      pooled: the score of all rows together, in which a client counts as its rows do.
    """

    each: dict[Any, float]
    mean: float
    worst_decile: float
    held_out: float
    held_out_worst_decile: float
    pooled: float


def by_client(
    score: np.ndarray | Callable[[np.ndarray], Any],
    clients: Any,
    *,
    higher_is_better: bool,
    held_out: Collection[Any] = (),
) -> ClientScores:
    """Scores the rows of each client by themselves.

    Args:
      score: f[n], one number a row, of which a client gets the mean; or a function of
        row numbers i64[m] that gives their score, for scores that are no means of rows
        (BLEU): `lambda rows: bleu(predictions[rows], references[rows])`.
      clients: [n], the client of each row.
      higher_is_better: whether a low score is a bad one.
      held_out: clients that did not take part in training.

    Returns:
      `ClientScores`.

    Raises:
      TypeError, ValueError: no rows, not one score a row, or a client held out that has
        no row.

    Example:
      >>> accuracy = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
      >>> clients = ["a", "a", "b", "c", "c"]
      >>> found = by_client(accuracy, clients, higher_is_better=True, held_out=["c"])
      >>> found.mean, found.worst_decile, found.held_out, found.pooled
      (0.5, 0.0, 0.5, 0.6)
    """
    checks.flag("higher_is_better", higher_is_better)
    owners = np.asarray(clients)
    if owners.ndim != 1 or not len(owners):
        raise ValueError(
            f"expected the client of each row, [n], got shape {owners.shape}"
        )
    of_rows = score if callable(score) else _mean_of(score, len(owners))
    known = dict.fromkeys(owners.tolist())
    if missing := [client for client in held_out if client not in known]:
        raise ValueError(f"held_out has clients without a row: {missing[:5]}")
    each = {
        client: _number(of_rows(np.flatnonzero(owners == client))) for client in known
    }

    def parts(wanted: bool) -> tuple[float, float]:
        kept = [value for one, value in each.items() if (one in held_out) == wanted]
        values = np.array(kept)
        if callable(score):  # NaN of rows is a fault, that of a function no score
            values = values[~np.isnan(values)]
        if not len(values):
            return float("nan"), float("nan")
        worst = worst_decile(values, higher_is_better=higher_is_better)
        return float(values.mean()), worst

    mean, worst = parts(False)
    held_mean, held_worst = parts(True)
    return ClientScores(
        each=each,
        mean=mean,
        worst_decile=worst,
        held_out=held_mean,
        held_out_worst_decile=held_worst,
        pooled=_number(of_rows(np.arange(len(owners)))),
    )


def worst_decile(
    values: np.ndarray, name: str = "", *, higher_is_better: bool | None = None
) -> float:
    """The mean of the worst tenth of the clients, at least one.

    Args:
      values: f64[clients], one score; NaN is left out.
      name: of the score.
      higher_is_better: whether the lowest values are worst; None: for `accuracy` they
        are, and else the highest.

    Returns:
      The mean; NaN if no value is known.

    Example:
      >>> worst_decile(np.arange(20.0), "loss")
      18.5
      >>> worst_decile(np.arange(20.0), "bleu", higher_is_better=True)
      0.5
    """
    if higher_is_better is not None:
        checks.flag("higher_is_better", higher_is_better)
    lowest = name == "accuracy" if higher_is_better is None else higher_is_better
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return float("nan")
    n = max(1, len(values) // 10)
    worst = values[:n] if lowest else values[-n:]
    return float(worst.mean())


def _mean_of(score: Any, n_rows: int) -> Callable[[np.ndarray], float]:
    """The mean score of some rows."""
    values = np.asarray(score, np.float64)
    if values.shape != (n_rows,):
        raise ValueError(
            f"expected one score a row, [{n_rows}], got shape {list(values.shape)}"
        )

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    return mean


def _number(found: Any) -> float:
    """A score as a number; of those with a signature, the score."""
    return float(getattr(found, "score", found))
