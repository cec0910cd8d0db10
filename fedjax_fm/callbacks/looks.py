"""Looks at the model between rounds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_fm import checks
from fedjax_fm.callbacks.base import Callback, Metrics
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.evaluation.evaluate import Scores, means
from fedjax_fm.evaluation.evaluate import evaluate as scores_of
from fedjax_fm.population.population import Population
from fedjax_fm.types import Task

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator


class _Evaluate(Callback):
    """See `evaluate`."""

    def __init__(
        self, task: Task, arrays: Mapping[str, Any], prefix: str, how: dict[str, Any]
    ):
        self.task, self.arrays, self.prefix, self.how = task, arrays, prefix, how
        self._simulator: Simulator | None = None

    def begin(
        self,
        simulator: "Simulator",
        state: SimulationState,
        metrics: Metrics,
        last: int,
    ) -> None:
        self._simulator = simulator

    def __call__(
        self, round: int, state: SimulationState, metrics: Metrics
    ) -> dict[str, float]:
        assert self._simulator is not None
        scores = scores_of(
            self.task, *self._simulator.model(state), self.arrays, **self.how
        )
        return {f"{self.prefix}{name}": value for name, value in means(scores).items()}


def evaluate(
    task: Task,
    arrays: Mapping[str, Any],
    *,
    prefix: str = "eval_",
    batch_size: int = 256,
    bucket: int | None = None,
) -> Callback:
    """Scores the server's model.

    Its columns are `eval_loss` and each metric of the task, `eval_accuracy` for
    example.

    Args:
      task: what is computed of each example; means are weighted as the task weighs.
      arrays: {column: [n, ...]}, a test set.
      prefix: of the columns' names, for a second test set.
      batch_size, bucket: as for `fedjax_fm.evaluate`.

    Returns:
      A callback.

    Raises:
      ValueError: the test set is empty.

    Example:
      `simulator.run(state, 60, every=5, callbacks=[callbacks.evaluate(task, test)])`
    """
    checks.instance(
        "task", task, Task, "make one with tasks.classification(adapted) or Task(loss)"
    )
    _check_rows(arrays)
    return _Evaluate(
        task,
        arrays,
        checks.text("prefix", prefix),
        {"batch_size": batch_size, "bucket": bucket},
    )


class _EvaluateClients(Callback):
    """See `evaluate_clients`."""

    def __init__(
        self, task: Task, population: Population, prefix: str, how: dict[str, Any]
    ):
        self.task, self.population, self.prefix, self.how = (
            task,
            population,
            prefix,
            how,
        )
        self._simulator: Simulator | None = None

    def begin(
        self,
        simulator: "Simulator",
        state: SimulationState,
        metrics: Metrics,
        last: int,
    ) -> None:
        check_clients(simulator, self.population)
        self._simulator = simulator

    def __call__(
        self, round: int, state: SimulationState, metrics: Metrics
    ) -> dict[str, float]:
        assert self._simulator is not None
        scores = client_scores(
            self._simulator, state, self.task, self.population, **self.how
        )
        found = [means(one) for one in scores if one is not None]
        row: dict[str, float] = {}
        for name in found[0]:
            values = np.array([one[name] for one in found])
            row[f"{self.prefix}{name}"] = float(np.nanmean(values))
            row[f"{self.prefix}{name}_worst_decile"] = worst_decile(values, name)
        return row


def evaluate_clients(
    task: Task,
    population: Population,
    *,
    prefix: str = "clients_",
    batch_size: int = 256,
    bucket: int | None = None,
) -> Callback:
    """Scores each client's model on the client's own test examples.

    The columns are the mean over clients, each counting once, `clients_loss` and so on,
    and the mean of the worst tenth of them, `clients_loss_worst_decile`. A client
    without test examples is left out. A method without personal models is scored with
    the server's.

    Args:
      task: what is computed of each example.
      population: test examples of the same clients, in the same order.
      prefix: of the columns' names.
      batch_size, bucket: as for `fedjax_fm.evaluate`.

    Returns:
      A callback.

    Raises:
      ValueError: no client has a test example; when the run begins, another number of clients.

    Example:
      `simulator.run(state, 60, every=5, callbacks=[callbacks.evaluate_clients(task, test)])`
    """
    checks.instance(
        "task", task, Task, "make one with tasks.classification(adapted) or Task(loss)"
    )
    checks.instance(
        "population",
        population,
        Population,
        "make one with Population.from_clients(...)",
    )
    if population.n_examples == 0:
        raise ValueError(f"nothing to evaluate: no client has an example, {population}")
    return _EvaluateClients(
        task, population, prefix, {"batch_size": batch_size, "bucket": bucket}
    )


def check_clients(simulator: "Simulator", population: Population) -> None:
    """Raises ValueError unless both have as many clients."""
    if population.n_clients != simulator.population.n_clients:
        raise ValueError(
            f"expected test examples of {simulator.population.n_clients} clients, "
            f"those that train, got a population of {population.n_clients}"
        )


def client_scores(
    simulator: "Simulator",
    state: SimulationState,
    task: Task,
    population: Population,
    **how: Any,
) -> list[Scores | None]:
    """Every client's scores by its own model, None for a client without examples.

    Args:
      simulator, state: of the run.
      task, population: what is scored of whose examples.
      how: `batch_size` and `bucket` of `evaluate`.
    """
    sizes = population.sizes
    if not simulator.is_personal:
        scores = scores_of(task, *simulator.model(state), population.arrays, **how)
        places = np.cumsum(sizes)[:-1]
        parts = {name: np.split(column, places) for name, column in scores.items()}
        return [
            {name: parts[name][k] for name in parts} if size else None
            for k, size in enumerate(sizes)
        ]
    found: list[Scores | None] = []
    how["batch_size"] = min(
        how.get("batch_size", 256), int(sizes.max())
    )  # one compile, no batch of mostly padding
    for k, size in enumerate(sizes):
        arrays = population.client(k) if size else None
        found.append(
            None
            if arrays is None
            else scores_of(task, *simulator.model(state, k), arrays, **how)
        )
    return found


def worst_decile(values: np.ndarray, name: str) -> float:
    """The mean of the worst tenth of the clients, at least one.

    The lowest accuracies, the highest of all else.
    """
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return float("nan")
    n = max(1, len(values) // 10)
    return float((values[:n] if name == "accuracy" else values[-n:]).mean())


def _check_rows(arrays: Mapping[str, Any]) -> None:
    if not arrays or not all(len(array) for array in arrays.values()):
        raise ValueError("nothing to evaluate: the arrays have no rows")
