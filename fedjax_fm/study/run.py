"""What an arm is given: its settings, its data, and a way to simulate.

A simulation keeps the curve and the bytes that the report needs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import callbacks
from fedjax_fm.callbacks.base import CallbackError, Metrics
from fedjax_fm.callbacks.history import History
from fedjax_fm.callbacks.looks import client_scores
from fedjax_fm.engine import SimulationState, Simulator
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.population.population import Population
from fedjax_fm.study.clock import simulated_seconds
from fedjax_fm.systems import (
    Counts,
    Preparation,
    counts_of,
    per_example,
    together,
    with_preparation,
)
from fedjax_fm.types import Algorithm, Task, Tree

TUNING, FINAL = "tuning", "final"
Clients = Population | Sequence[Mapping[str, Any]]  # or the arrays of each


class Simulated(NamedTuple):
    """A simulation that has ended.

    Attributes:
      simulator: that ran.
      state: after the last round.
      metrics: of all rounds.
      scores: {name: mean} over the test set after the last round; {} without one.
      memory: bytes that the compiled rounds need on a device; None where that was not
        asked for, or the compiler does not say.
    """

    simulator: Simulator
    state: SimulationState
    metrics: Metrics
    scores: dict[str, float]
    memory: int | None = None

    def model(self, client: int | None = None) -> tuple[Tree, Tree]:
        """The model after the last round.

        Args:
          client: whose model; default: the server's.

        Returns:
          (delta, backbone).
        """
        return self.simulator.model(self.state, client)


class Run:
    """What an arm is called with: one seed, or one point of its grid.

    `run["name"]` is a setting of the grid, `run.data` what the study's `data` returned.

    Args:
      arm: its name.
      config: of the study.
      seed: of the data, the initial values and all else in the run.
      split: "tuning" or "final".
      hyper: {setting: value} of the grid.
      data: returns the data of the seed and the split.
      folder: of checkpoints, for simulations with `keep`.
      seeds: all of them, for an arm that runs them at once.
      shared: what `once` has computed for other arms of the seed.
      looks: callbacks of every simulation.

    Attributes:
      curve: rows of all simulations so far, {"round", "seconds", …}.
      clients: what `score_clients` found.
      bytes: sent so far, by direction.
      counts: what the clients of all simulations so far did.
      notes: more entries of the arm's cell, anything that JSON can hold.
      shuffles_labels: whether `simulate` permutes the labels of the clients that train,
        for a control: each client's among its own examples, those of a packed
        `Population` among all of them.

    Example:
      >>> run = Run(
      ...     "fedavg",
      ...     config=None,
      ...     seed=0,
      ...     split="final",
      ...     hyper={"rate": 0.1},
      ...     data=lambda: [1, 2],
      ... )
      >>> run["rate"], run.data, run.is_tuning
      (0.1, [1, 2], False)
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
        self.counts = Counts()
        self.notes: dict[str, Any] = {}
        self.shuffles_labels = False
        self._has_read_data = False

    @property
    def data(self) -> Any:
        """What the study's `data` returned for the seed and the split.

        If that has a `preparation`, an arm that reads the data is billed for it, once.
        """
        found = self._data()
        done = getattr(found, "preparation", None)
        if isinstance(done, Preparation) and not self._has_read_data:
            self.computed(done)
        self._has_read_data = True
        return found

    @property
    def is_tuning(self) -> bool:
        """Whether this is a point of the grid, which may take fewer rounds."""
        return self.split == TUNING

    @property
    def rounds(self) -> int:
        """The configuration's `rounds`; while tuning its `tuning_rounds`, if it has them."""
        name = "tuning_rounds" if self.is_tuning else "rounds"
        return getattr(self.config, name, self.config.rounds)

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

        Simulations inside of `make` count for no arm: add their bytes by `sent` and what
        clients prepare by `computed`, or use `simulate_once`.

        Args:
          key: names the value; with all settings that it depends on.
          make: computes the value, which must not depend on the arm.
        """
        key = (key, self.shuffles_labels)
        if key not in self._shared:
            before = list(self.curve), list(self.clients), dict(self.bytes)
            counts, has_read_data = self.counts, self._has_read_data
            self._shared[key] = make()
            self.curve, self.clients, self.bytes = before
            self.counts, self._has_read_data = counts, has_read_data
        return self._shared[key]

    def simulate_once(self, key: Any, start: Callable[[], Simulated]) -> Simulated:
        """A simulation that several arms of the seed share; it counts for each of them.

        Args:
          key: names the simulation; with all settings that it depends on.
          start: calls `run.simulate(...)`; used by the first arm that asks.

        Returns:
          The simulation.
        """
        found = self.once(key, start)
        self._record(found.simulator, found.state, found.metrics)
        return found

    def simulate(
        self,
        algorithm: Algorithm,
        clients: Clients,
        delta: Tree | Adapted,
        rounds: int | None = None,
        *,
        backbone: Tree = (),
        cohort_size: int | None = None,
        task: Task | None = None,
        test: Mapping[str, Any] | Clients | None = None,
        every: int | None = None,
        most_bytes: float | None = None,
        batch_size: int = 256,
        bucket: int | None = None,
        keep: bool = False,
        travels: bool = True,
        looks: Sequence[Any] = (),
        asks_memory: bool = False,
        **how: Any,
    ) -> Simulated:
        """Runs an algorithm, and keeps its curve and its bytes for the report.

        Of several simulations of one arm the bytes add up, and the curves follow each
        other.

        Args:
          algorithm: as for `Simulator`.
          clients: a population, or the arrays of each client.
          delta: the trainable tree; or an adapted model, whose backbone it brings.
          rounds: at most; 0 for the model that a run starts from. Default:
            `run.rounds`.
          backbone: as for `Simulator`.
          cohort_size: as for `Simulator`; default: all clients.
          task: what is computed of each test example; its scores are the curve.
          test: arrays, for the server's model; or clients, each of whose own models is
            judged on its own examples, for the mean over clients.
          every: rounds between two evaluations; default: about ten in all.
          most_bytes: up and down together; the run ends before the round that would
            send more. Every round is evaluated then, and `keep` has no effect.
          batch_size: test examples that are computed at once.
          bucket: as for `evaluate`.
          keep: saves checkpoints, so that a long simulation that is interrupted goes
            on; without it, it begins anew.
          travels: False where all data lie in one place, and no byte is sent.
          looks: further callbacks.
          asks_memory: compiles ahead, to tell what memory the rounds need; only where
            one program holds them, see `Simulator.compile`.
          **how: more for `Simulator`; the seed is the run's.

        Returns:
          The simulation.

        Raises:
          ValueError: the first round sends more than `most_bytes`.
          RoundError: a client's training was not finite.
          FloatingPointError: the model was not, when it was evaluated.
        """
        population = _population(self._to_learn_from(clients))
        rounds = self.rounds if rounds is None else rounds
        cohort_size = population.n_clients if cohort_size is None else cohort_size
        if isinstance(delta, Adapted):
            delta, backbone = delta.delta, delta.backbone
        simulator = Simulator(
            algorithm,
            population,
            backbone=backbone,
            cohort_size=cohort_size,
            seed=self.seed,
            **how,
        )
        looks = [*self._looks, *looks]
        if task is not None and test is not None:
            looks.append(_look(task, test, batch_size=batch_size, bucket=bucket))
        if keep and self._folder is not None:
            place = self._folder / str(self._n_simulated)
            looks.append(callbacks.checkpoint(place))
        self._n_simulated += 1
        every = every or max(1, rounds // 10)
        memory = simulator.compile(delta).needed if asks_memory else None
        state = simulator.init(delta)
        try:
            if most_bytes is None:
                calls = {"every": every, "callbacks": looks}
                state, metrics = simulator.run(state, rounds, **calls)
            else:
                state, metrics = _within(most_bytes, simulator, state, rounds, looks)
        except CallbackError as error:
            if isinstance(error.__cause__, FloatingPointError):  # the run diverged
                raise error.__cause__ from error
            raise
        if not travels:
            nothing = {name: np.zeros(rounds, np.int64) for name in self.bytes}
            metrics = {**metrics, **nothing}
        if rounds:
            self._record(simulator, state, metrics)
        last = {name: float(column[-1]) for name, column in _looked(metrics).items()}
        return Simulated(
            simulator=simulator,
            state=state,
            metrics=metrics,
            scores={name.removeprefix("eval_"): value for name, value in last.items()},
            memory=memory,
        )

    def _to_learn_from(self, clients: Clients) -> Clients:
        """The clients that train; for a control, with labels permuted among all of them.

        Permuted inside each client they would leave it its own mix of labels, from
        which a model learns where mixes differ.
        """
        if not self.shuffles_labels:
            return clients
        packed = _population(clients)
        arrays = shuffled_labels(packed.arrays, self.seed)
        return Population.from_arrays(arrays, packed.offsets)

    def score_clients(
        self, run: Simulated, task: Task, clients: Clients, name: str, **how: Any
    ) -> np.ndarray:
        """The mean of one score of each client's model, which the report shows.

        Args:
          run: from `simulate`.
          task: what is computed of each example.
          clients: test examples of the same clients, in the same order.
          name: of the score, "accuracy" for example.
          **how: `batch_size` and `bucket` of `evaluate`.

        Returns:
          f64[N], NaN for a client without examples.
        """
        own = _population(clients)
        scores = client_scores(run.simulator, run.state, task, own, **how)
        each = [np.nan if one is None else means(one)[name] for one in scores]
        values = np.array(each)
        self.clients = [float(value) for value in values if not np.isnan(value)]
        return values

    def sent(self, *, up: int = 0, down: int = 0) -> None:
        """Adds bytes that are sent beside the rounds: directions, seeds, a public set.

        Args:
          up: bytes of all clients together.
          down: bytes of all clients together.
        """
        self.bytes["uplink_bytes"] += int(up)
        self.bytes["downlink_bytes"] += int(down)

    def computed(self, done: Preparation) -> None:
        """Adds what clients compute once beside the rounds: features of frozen layers.

        Args:
          done: by all clients together, from `systems.prepared`.

        Raises:
          TypeError: something else.
        """
        if not isinstance(done, Preparation):
            raise TypeError(
                "expected a Preparation of fedjax_fm.systems, what `prepared` returns, "
                f"got {done!r:.80}"
            )
        self.counts = with_preparation(self.counts, done)

    def _record(
        self, simulator: Simulator, state: SimulationState, metrics: Metrics
    ) -> None:
        """Adds a simulation to the curve, to the bytes and to the counts."""
        before, looked = dict(self.bytes), _looked(metrics)
        last = self.curve[-1] if self.curve else {"round": 0, "seconds": 0.0}
        totals = {name: np.cumsum(metrics[name]) for name in before}
        travels = any(metrics[name].any() for name in before)
        seconds = simulated_seconds(
            simulator, state, metrics, seed=self.seed, travels=travels
        )
        for index in _rows_to_keep(metrics):
            row = {
                "round": last["round"] + index + 1,
                "seconds": last["seconds"] + float(seconds[index]),
            }
            for name, total in totals.items():
                row[name] = before[name] + int(total[index])
            for name, column in looked.items():
                row[name] = float(column[index])
            row["loss"] = float(metrics["loss"][index])
            known = {name: value for name, value in row.items() if value == value}
            self.curve.append(known)
        for name, total in totals.items():
            self.bytes[name] = before[name] + (int(total[-1]) if len(total) else 0)
        counts = counts_of(per_example(simulator), metrics)
        self.counts = together(self.counts, counts)


def shuffled_labels(arrays: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The same examples with permuted labels: there is nothing to learn.

    Args:
      arrays: with `label`.
      seed: of the permutation.

    Raises:
      ValueError: there is no `label`.
    """
    if "label" not in arrays:
        columns = ", ".join(arrays)
        raise ValueError(
            f"a control on shuffled labels needs the column 'label', got {columns}; "
            "write an arm that permutes what its clients learn"
        )
    random = np.random.default_rng(seed)
    return {**arrays, "label": random.permutation(arrays["label"])}


def _population(clients: Clients) -> Population:
    """The clients, packed unless they are."""
    if isinstance(clients, Population):
        return clients
    return Population.from_clients(clients)


def _look(task: Task, test: Mapping[str, Any] | Clients, **how: Any) -> Any:
    """A callback with scores of the server's model, or of each client's on its own test."""
    if isinstance(test, Mapping):
        return callbacks.evaluate(task, test, **how)
    own = _population(test)
    return callbacks.evaluate_clients(task, own, prefix="eval_", **how)


def _within(
    most_bytes: float,
    simulator: Simulator,
    state: SimulationState,
    rounds: int,
    looks: Sequence[Any],
) -> tuple[SimulationState, Metrics]:
    """Runs round by round until one sends more than the budget; that one is dropped.

    How much a round sends is not known before it has run.
    """
    history, sent = History(), 0
    for _ in range(rounds):
        after, found = simulator.run(state, 1, callbacks=looks)
        up, down = found["uplink_bytes"][0], found["downlink_bytes"][0]
        sent += int(up + down)
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
    """Columns of scores on the test set."""
    return {
        name: column for name, column in metrics.items() if name.startswith("eval_")
    }


def _rows_to_keep(metrics: Metrics) -> list[int]:
    """Rounds with scores on the test set; without any about thirty of all rounds."""
    n = len(metrics["loss"])
    if columns := _looked(metrics):
        column = next(iter(columns.values()))
        looked = np.flatnonzero(~np.isnan(column))
        return [int(index) for index in looked]
    every = max(1, n // 30)
    return [index for index in range(n) if (index + 1) % every == 0 or index == n - 1]
