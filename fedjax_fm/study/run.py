"""What an arm is given.

Its settings and data, and a way to simulate that keeps what the report needs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import callbacks
from fedjax_fm.callbacks.base import Metrics
from fedjax_fm.callbacks.history import History
from fedjax_fm.callbacks.looks import client_scores
from fedjax_fm.engine import SimulationState, Simulator
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.population.population import Population
from fedjax_fm.study.clock import simulated_seconds
from fedjax_fm.types import Algorithm, Task, Tree

TUNING, FINAL = "tuning", "final"


class Simulated(NamedTuple):
    """A run that has ended.

    Attributes:
      simulator, state, metrics: see `Simulator.run`.
      scores: {name: mean} of the last look at the test set; {} without one.
    """

    simulator: Simulator
    state: SimulationState
    metrics: Metrics
    scores: dict[str, float]

    def model(self, client: int | None = None) -> tuple[Tree, Tree]:
        """(delta, backbone), of the server or of one client."""
        return self.simulator.model(self.state, client)


class Run:
    """One arm with one seed, or one point of its grid.

    Attributes:
      arm: its name.
      config: of the study.
      seed: names the data, the initial values and all of the run.
      seeds: all of them, for an arm that runs them at once.
      split: "tuning" or "final".
      data: what the study's `data` returned for the seed and the split.
    """

    def __init__(
        self,
        arm: str,
        config: Any,
        seed: int,
        split: str,
        hyper: Mapping[str, Any],
        data: Callable[[], Any],
        *,
        folder: Path | None = None,
        seeds: Sequence[int] = (),
        shared: dict[Any, Any] | None = None,
        looks: Sequence[Any] = (),
    ):
        self.arm, self.config, self.seed, self.split = arm, config, seed, split
        self.seeds = tuple(seeds)
        self._hyper, self._data, self._folder = dict(hyper), data, folder
        self._shared = {} if shared is None else shared
        self._looks = list(looks)
        self._n_simulated = 0
        self.curve: list[dict[str, float]] = []
        self.clients: list[float] = []
        self.bytes = {"uplink_bytes": 0, "downlink_bytes": 0}
        self.notes: dict[str, Any] = {}

    @property
    def data(self) -> Any:
        return self._data()

    @property
    def is_tuning(self) -> bool:
        """Whether this is a point of the grid, which may take fewer rounds."""
        return self.split == TUNING

    def __getitem__(self, name: str) -> Any:
        """The value of a setting of the arm's grid."""
        if name not in self._hyper:
            known = ", ".join(self._hyper) or "none"
            raise KeyError(
                f"the arm {self.arm!r} has no setting {name!r} in its grid; there are {known}"
            )
        return self._hyper[name]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed once for all arms of the seed.

        What they share must not depend on the arm.

        Simulations inside of `make` count for no arm, whichever comes first: add their
        bytes by `sent`, or use `simulate_once`.
        """
        if key not in self._shared:
            before = list(self.curve), list(self.clients), dict(self.bytes)
            self._shared[key] = make()
            self.curve, self.clients, self.bytes = before
        return self._shared[key]

    def simulate_once(self, key: Any, start: Callable[[], Simulated]) -> Simulated:
        """Like `once`, of a simulation.

        Its bytes and its curve are those of every arm that asks for it.

        Args:
          key: names the simulation, with all settings that it depends on.
          start: `run.simulate(...)`, called by the first arm that asks.
        """
        found = self.once(key, start)
        self._record(found.simulator, found.state, found.metrics)
        return found

    def simulate(
        self,
        algorithm: Algorithm,
        population: Population,
        delta: Tree,
        rounds: int,
        *,
        backbone: Tree = (),
        cohort_size: int,
        task: Task | None = None,
        test: Mapping[str, Any] | Population | None = None,
        every: int | None = None,
        most_bytes: float | None = None,
        batch_size: int = 256,
        bucket: int | None = None,
        keep: bool = False,
        travels: bool = True,
        **how: Any,
    ) -> Simulated:
        """Runs an algorithm, and keeps its curve and its bytes for the report.

        Args:
          algorithm, population, backbone, cohort_size, how: as for `Simulator`; the
          seed is the run's.
          delta: the trainable tree.
          rounds: at most; 0 for the model that a run starts from.
          task, test: what is looked at, and on which examples; the columns of the curve
            are the task's. Arrays are for the server's model; a population is for each
            client's own model on its own examples, the curve is the mean over clients.
          every: rounds between two looks; default: about ten in all.
          most_bytes: up and down together; the run ends before the round that would
            send more. Every round is looked at, and `keep` has no use.
          batch_size, bucket: as for `evaluate`.
          keep: saves checkpoints, so that a run of many minutes goes on where it was
            killed; without it, it begins anew.
          travels: False where all data lie in one place, and no byte is sent.

        Returns:
          The run. Bytes of several simulations of one arm add up, their curves follow each other.
        """
        simulator = Simulator(
            algorithm,
            population,
            backbone=backbone,
            cohort_size=cohort_size,
            seed=self.seed,
            **how,
        )
        looks = list(self._looks)
        how_scored: dict[str, Any] = {"batch_size": batch_size, "bucket": bucket}
        if task is None or test is None:
            pass
        elif isinstance(test, Population):
            looks.append(
                callbacks.evaluate_clients(task, test, prefix="eval_", **how_scored)
            )
        else:
            looks.append(callbacks.evaluate(task, test, **how_scored))
        if keep and self._folder is not None:
            looks.append(callbacks.checkpoint(self._folder / str(self._n_simulated)))
        self._n_simulated += 1
        every = every or max(1, rounds // 10)
        state = simulator.init(delta)
        if most_bytes is None:
            state, metrics = simulator.run(state, rounds, every=every, callbacks=looks)
        else:
            state, metrics = _within(most_bytes, simulator, state, rounds, looks)
        if not travels:
            metrics = {
                **metrics,
                **{name: np.zeros(rounds, np.int64) for name in self.bytes},
            }
        if rounds:
            self._record(simulator, state, metrics)
        found = {
            name.removeprefix("eval_"): float(column[-1])
            for name, column in _looked(metrics).items()
        }
        return Simulated(
            simulator=simulator, state=state, metrics=metrics, scores=found
        )

    def score_clients(
        self, run: Simulated, task: Task, population: Population, name: str, **how: Any
    ) -> np.ndarray:
        """The mean of one score of each client's model on the client's own examples.

        Kept for the report.

        Args:
          run: from `simulate`.
          task: what is computed of each example.
          population: test examples of the same clients, in the same order.
          name: of the score, "accuracy" for example.
          how: `batch_size` and `bucket` of `evaluate`.

        Returns:
          f64[N], NaN for a client without examples.
        """
        scores = client_scores(run.simulator, run.state, task, population, **how)
        values = np.array(
            [np.nan if one is None else means(one)[name] for one in scores]
        )
        self.clients = [float(value) for value in values if not np.isnan(value)]
        return values

    def sent(self, *, up: int = 0, down: int = 0) -> None:
        """Adds bytes that are sent once beside the rounds: directions, a seed, a public set."""
        self.bytes["uplink_bytes"] += int(up)
        self.bytes["downlink_bytes"] += int(down)

    def _record(
        self, simulator: Simulator, state: SimulationState, metrics: Metrics
    ) -> None:
        before = dict(self.bytes)
        last = self.curve[-1] if self.curve else {"round": 0, "seconds": 0.0}
        totals = {name: np.cumsum(metrics[name]) for name in before}
        travels = any(metrics[name].any() for name in before)
        seconds = simulated_seconds(simulator, state, metrics, self.seed, travels)
        for index in _rows_to_keep(metrics):
            row = {
                "round": last["round"] + index + 1,
                "seconds": last["seconds"] + float(seconds[index]),
            }
            row |= {
                name: before[name] + int(total[index]) for name, total in totals.items()
            }
            row |= {
                name: float(column[index]) for name, column in _looked(metrics).items()
            }
            row["loss"] = float(metrics["loss"][index])
            self.curve.append(
                {name: value for name, value in row.items() if value == value}
            )
        for name, total in totals.items():
            self.bytes[name] = before[name] + (int(total[-1]) if len(total) else 0)


def _within(
    most_bytes: float,
    simulator: Simulator,
    state: SimulationState,
    rounds: int,
    looks: Sequence[Any],
) -> tuple[SimulationState, Metrics]:
    """Rounds one by one; one that sends too much, which only it can tell, is not counted."""
    history, sent = History(), 0
    for _ in range(rounds):
        after, found = simulator.run(state, 1, callbacks=looks)
        sent += int(found["uplink_bytes"][0] + found["downlink_bytes"][0])
        if sent > most_bytes:
            break
        state = after
        history.extend(found)
    if not history.metrics:
        raise ValueError(
            f"the first round sends {sent} bytes, more than the {most_bytes:.0f} of the budget"
        )
    return state, history.metrics


def _looked(metrics: Metrics) -> dict[str, np.ndarray]:
    """Columns of looks at the test set."""
    return {
        name: column for name, column in metrics.items() if name.startswith("eval_")
    }


def _rows_to_keep(metrics: Metrics) -> list[int]:
    """Rounds with a look, else about thirty of all."""
    n = len(metrics["loss"])
    if columns := _looked(metrics):
        column = next(iter(columns.values()))
        return [int(index) for index in np.flatnonzero(~np.isnan(column))]
    return [
        index
        for index in range(n)
        if (index + 1) % max(1, n // 30) == 0 or index == n - 1
    ]
