"""Scores of personal models: over clients, against the shared one, of new clients."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.clients import worst_decile
from fedjax_fm.evaluation.evaluate import evaluate
from fedjax_fm.population.population import Population
from fedjax_fm.types import Task, Tree

# Of a client, or with None of the server: `functools.partial(simulator.model, state)`.
Models = Callable[[int | None], tuple[Tree, Tree]]


class Spread(NamedTuple):
    """A score over clients, each of which counts once unless it says otherwise.

    Attributes:
      clients: how many.
      mean: over them.
      pooled: over all their rows.
      deviation: standard deviation between clients, with n in its denominator.
      worst_decile: mean of the worst tenth of clients, at least one.
      tenth: the value that the worst tenth does not reach: the 10th percentile, of a
        score that is better low the 90th.
      worst: of the worst client.
    """

    clients: int
    mean: float
    pooled: float
    deviation: float
    worst_decile: float
    tenth: float
    worst: float


class PersonalScores(NamedTuple):
    """What personal models are worth.

    Attributes:
      own: clients' own models on their own rows.
      shared: the server's model on the same rows.
      own_on_shared_worst: mean of the own models over the clients that are the worst
        tenth under the server's model. That set is the same for all methods that are
        compared with one server's model, while each method's own worst tenth is chosen
        by its noise, too.
      everyone: own models on rows of everyone; None without such rows.
      new, new_shared: as `own` and `shared`, of clients that took no part; None without
        any.
      each: {client: (own, shared)}, for paired comparisons.
      excluded: clients with too few rows.
    """

    own: Spread
    shared: Spread
    own_on_shared_worst: float
    everyone: Spread | None
    new: Spread | None
    new_shared: Spread | None
    each: dict[int, tuple[float, float]]
    excluded: tuple[int, ...]


class _Score(NamedTuple):
    """How a model is scored on rows."""

    task: Task
    name: str
    higher: bool
    how: dict[str, Any]

    def of(self, model: tuple[Tree, Tree], rows: Mapping) -> tuple[float, float]:
        """(mean over rows, what the rows count)."""
        scores = evaluate(self.task, *model, rows, **self.how)
        if self.name not in scores:
            raise ValueError(
                f"expected score to be one of {sorted(scores)}, got score={self.name!r}"
            )
        values = np.asarray(scores[self.name], np.float64)
        weight = np.asarray(scores.get("weight", np.ones_like(values)), np.float64)
        return float(np.average(values, weights=weight)), float(weight.sum())

    def spread(self, values: list[float], weights: list[float]) -> Spread:
        """The scores of clients in a row."""
        array = np.array(values)
        bad = min if self.higher else max
        return Spread(
            clients=len(array),
            mean=float(array.mean()),
            pooled=float(np.average(array, weights=weights)),
            deviation=float(array.std()),
            worst_decile=worst_decile(array, higher_is_better=self.higher),
            tenth=float(np.percentile(array, 10 if self.higher else 90)),
            worst=float(bad(values)),
        )


def personal_scores(
    task: Task,
    models: Models,
    test: Population,
    *,
    score: str = "accuracy",
    higher_is_better: bool = True,
    new: Collection[int] = (),
    everyone: Mapping[str, Any] | None = None,
    least_rows: int = 5,
    batch_size: int = 256,
    bucket: int | None = None,
) -> PersonalScores:
    """Scores every client's model on the client's own rows, beside the server's.

    What a client has done before it is scored is up to `models`: say whether it adapted
    and by how many steps. A client that took no part has what the method starts it
    with; `algorithms.fine_tune` gives it a model that it trained.

    Args:
      task: what is computed of each row.
      models: `client -> (delta, backbone)`, and of None the server's:
        `functools.partial(simulator.model, state)`.
      test: test rows of the same clients, in the same order.
      score: "loss" or a metric of the task.
      higher_is_better: of the score.
      new: clients that took no part in training, which are told apart.
      everyone: {column: [n, ...]}, rows of everyone, on which each own model is scored,
        too: what it lost beyond its own data.
      least_rows: clients with fewer are left out, and counted.
      batch_size: rows that are computed at once.
      bucket: as for `evaluate`.

    Returns:
      `PersonalScores`.

    Raises:
      TypeError, ValueError: an argument is of another kind, no client has enough rows,
        or a new client is none of the population's.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      >>> rows = [{"x": np.full(5, x, np.float32)} for x in (1.0, 2.0, 4.0)]
      >>> def models(client):  # client 1 took no part
      ...     return jnp.float32([1.5, 2.0, 3.5][client or 0]), ()
      >>> found = personal_scores(
      ...     task,
      ...     models,
      ...     ffm.Population.from_clients(rows),
      ...     score="loss",
      ...     higher_is_better=False,
      ...     new=[1],
      ... )
      >>> found.own.mean, found.shared.mean, found.shared.worst, found.new.mean
      (0.25, 3.25, 6.25, 0.0)
    """
    _check(models, test, new, least_rows=least_rows, batch_size=batch_size)
    checks.flag("higher_is_better", higher_is_better)
    clients = range(test.n_clients)
    kept = [k for k in clients if test.sizes[k] >= least_rows]
    trained = [k for k in kept if k not in new]
    if not trained:
        raise ValueError(
            f"no client that trained has {least_rows} test rows or more: {test}"
        )
    # No larger than the largest client: one compilation, and little padding.
    how = {"batch_size": min(batch_size, int(test.sizes.max())), "bucket": bucket}
    scorer = _Score(task=task, name=score, higher=higher_is_better, how=how)
    rows = {k: test.client(k) for k in kept}
    own = {k: scorer.of(models(k), rows[k]) for k in kept}
    shared_model = models(None)
    shared = {k: scorer.of(shared_model, rows[k]) for k in kept}
    there = [k for k in kept if k in new]
    return PersonalScores(
        own=_spread(scorer, own, trained),
        shared=_spread(scorer, shared, trained),
        own_on_shared_worst=_on_worst(scorer, own, shared, trained),
        everyone=None
        if everyone is None
        else _beyond(scorer, models, everyone, trained),
        new=_spread(scorer, own, there) if there else None,
        new_shared=_spread(scorer, shared, there) if there else None,
        each={k: (own[k][0], shared[k][0]) for k in kept},
        excluded=tuple(k for k in clients if k not in rows),
    )


def _check(
    models: Models,
    test: Population,
    new: Collection[int],
    *,
    least_rows: int,
    batch_size: int,
) -> None:
    """Refuses what is of another kind."""
    hint = "make one with Population.from_clients(...)"
    checks.instance("test", test, Population, hint)
    checks.whole("least_rows", least_rows, least=1)
    checks.whole("batch_size", batch_size, least=1)
    if not callable(models):
        raise TypeError(
            "expected models to be a function of a client, got "
            f"models={checks.shown(models)}; "
            "write functools.partial(simulator.model, state)"
        )
    for client in new:
        checks.whole("new", client, least=0, most=test.n_clients - 1)


def _spread(scorer: _Score, found: dict, clients: list[int]) -> Spread:
    """Of some clients."""
    values, weights = zip(*(found[k] for k in clients), strict=True)
    return scorer.spread(list(values), list(weights))


def _on_worst(scorer: _Score, own: dict, shared: dict, clients: list[int]) -> float:
    """The own models' mean where the shared one is worst."""
    of_shared = np.array([shared[k][0] for k in clients])
    order = np.argsort(of_shared if scorer.higher else -of_shared, kind="stable")
    chosen = order[: max(1, len(clients) // 10)]
    return float(np.mean([own[clients[i]][0] for i in chosen]))


def _beyond(
    scorer: _Score, models: Models, rows: Mapping[str, Any], clients: list[int]
) -> Spread:
    """Own models on the rows of everyone."""
    found = [scorer.of(models(k), rows) for k in clients]
    return scorer.spread([value for value, _ in found], [count for _, count in found])
