"""Callbacks that evaluate the model between rounds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_fm import checks
from fedjax_fm.callbacks.base import Callback, Metrics
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.evaluation.clients import worst_decile
from fedjax_fm.evaluation.evaluate import Scores, means
from fedjax_fm.evaluation.evaluate import evaluate as scores_of
from fedjax_fm.population.population import Population
from fedjax_fm.types import Task

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator

MAKE_A_TASK = "make one with tasks.classification(adapted) or Task(loss)"


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
        model = self._simulator.model(state)
        scores = means(scores_of(self.task, *model, self.arrays, **self.how))
        return {f"{self.prefix}{name}": value for name, value in scores.items()}


def evaluate(
    task: Task,
    arrays: Mapping[str, Any],
    *,
    prefix: str = "eval_",
    batch_size: int = 256,
    bucket: int | None = None,
) -> Callback:
    """Scores the server's model on a test set.

    Its columns are `eval_loss` and each metric of the task, `eval_accuracy` for
    example: means over the examples.

    Args:
      task: what is computed of each example; means are weighted as the task weighs.
      arrays: {column: [n, ...]}, a test set.
      prefix: of the columns' names; a second test set needs another one.
      batch_size: examples that are computed at once.
      bucket: as for `fedjax_fm.evaluate`.

    Returns:
      A callback.

    Raises:
      ValueError: the test set is empty.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> task = ffm.Task(lambda w, _, batch, key: ((batch["x"] - w) ** 2, {}))
      >>> algorithm = ffm.fedavg(task, optax.sgd(0.5), local_steps=1, batch_size=2)
      >>> people = ffm.Population.from_clients([{"x": np.ones(2, np.float32)}] * 2)
      >>> simulator = ffm.Simulator(algorithm, people, cohort_size=2)
      >>> state = simulator.init(np.zeros((), np.float32))
      >>> look = ffm.callbacks.evaluate(task, {"x": np.full(3, 2.0, np.float32)})
      >>> state, metrics = simulator.run(state, 2, callbacks=[look])
      >>> metrics["eval_loss"]
      array([1., 1.])
    """
    checks.instance("task", task, Task, MAKE_A_TASK)
    _check_rows(arrays)
    how = {"batch_size": batch_size, "bucket": bucket}
    return _Evaluate(task, arrays, checks.text("prefix", prefix), how)


class _EvaluateClients(Callback):
    """See `evaluate_clients`."""

    def __init__(
        self, task: Task, population: Population, prefix: str, how: dict[str, Any]
    ):
        self.task, self.population = task, population
        self.prefix, self.how = prefix, how
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

    The columns are the mean over clients, each of which counts once (`clients_loss` and
    so on), and the mean of the worst tenth of them (`clients_loss_worst_decile`).
    Clients without test examples are left out. Without personal models every client is
    scored with the server's.

    Args:
      task: what is computed of each example.
      population: test examples of the same clients, in the same order.
      prefix: of the columns' names.
      batch_size: examples that are computed at once.
      bucket: as for `fedjax_fm.evaluate`.

    Returns:
      A callback.

    Raises:
      ValueError: no client has a test example, or, when the run begins, the number of
        clients is not that of the simulator.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> task = ffm.Task(lambda w, _, batch, key: ((batch["x"] - w) ** 2, {}))
      >>> algorithm = ffm.fedavg(task, optax.sgd(0.5), local_steps=1, batch_size=2)
      >>> people = ffm.Population.from_clients([{"x": np.ones(2, np.float32)}] * 2)
      >>> simulator = ffm.Simulator(algorithm, people, cohort_size=2)
      >>> look = ffm.callbacks.evaluate_clients(task, people)
      >>> start = simulator.init(np.zeros((), np.float32))
      >>> state, metrics = simulator.run(start, 1, callbacks=[look])
      >>> metrics["clients_loss"], metrics["clients_loss_worst_decile"]
      (array([0.]), array([0.]))
    """
    checks.instance("task", task, Task, MAKE_A_TASK)
    make = "make one with Population.from_clients(...)"
    checks.instance("population", population, Population, make)
    if population.n_examples == 0:
        raise ValueError(f"nothing to evaluate: no client has an example, {population}")
    how = {"batch_size": batch_size, "bucket": bucket}
    return _EvaluateClients(task, population, prefix, how)


def check_clients(simulator: "Simulator", population: Population) -> None:
    """Raises ValueError unless both have as many clients.

    Args:
      simulator: with the clients that train.
      population: test examples of the same clients.
    """
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
    """Every client's scores by its own model, or by the server's if it has none.

    Args:
      simulator: of the run.
      state: of the run.
      task: what is computed of each example.
      population: examples of the same clients, in the same order.
      **how: `batch_size` and `bucket` of `evaluate`.

    Returns:
      {name: f32[examples]} of each client, None for a client without examples.
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
    # No larger than the largest client: one compilation, and little padding.
    most = int(sizes.max())
    how["batch_size"] = min(how.get("batch_size", 256), most)
    for k, size in enumerate(sizes):
        if not size:
            found.append(None)
            continue
        model, arrays = simulator.model(state, k), population.client(k)
        found.append(scores_of(task, *model, arrays, **how))
    return found


def _check_rows(arrays: Mapping[str, Any]) -> None:
    sizes = [len(array) for array in arrays.values()]
    if not sizes or not all(sizes):
        raise ValueError("nothing to evaluate: the arrays have no rows")
