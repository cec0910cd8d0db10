"""One study two ways: through a simulation of Flower, and by `Simulator`.

    python -m fedjax_fm.experiments.bench.flower_both_ways [--rounds 20] [--seeds 0 1 2]

FedAvg and SCAFFOLD train a small perceptron on the digits of ten clients, dealt by label;
half of them take part in a round. Seconds of a run hold its compiling, and Flower's the
start of Ray's processes, too; the median round after the first holds neither. Flower's
bytes are those of its messages as it serialises them; ours are what the channels bill.
The table is in Markdown.

It needs Flower with Ray (pip install 'flwr[simulation]') and scikit-learn.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm.algorithms import scaffold
from fedjax_fm.bridges import Federation, flower, start
from fedjax_fm.evaluation import plus_minus
from fedjax_fm.experiments.shared.digits import Digits, deal
from fedjax_fm.experiments.shared.perceptron import SMALL, TASK, first_weights, logits

SUMMARY = "One study through a simulation of Flower, and by Simulator."
CLIENTS, COHORT, TEST, WIDTH = 10, 5, 300, 64
SGD = optax.sgd(0.1)
HOW: dict[str, Any] = {"local_steps": 10, "batch_size": 16}
METHODS: dict[str, Callable[[], Any]] = {
    "fedavg": lambda: ffm.fedavg(TASK, SGD, **HOW),
    "scaffold": lambda: scaffold(TASK, SGD, **HOW),
}
WAYS = ("flower", "simulator")
TIMEOUT = 600  # seconds, of one run


class Problem(NamedTuple):
    """What both ways begin with.

    Attributes:
      federation: what server and clients agree on.
      digits: of the clients, and for the test.
    """

    federation: Federation
    digits: Digits


def problem(method: str, seed: int) -> Problem:
    """Deals the digits and draws the first weights of a seed.

    Args:
      method: "fedavg" or "scaffold".
      seed: of data, weights and rounds.
    """
    digits = deal(seed, "final", clients=CLIENTS, alpha=0.3, test=TEST, smallest=16)
    columns = {
        name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
        for name, array in digits.clients.arrays.items()
    }
    federation = Federation(
        algorithm=METHODS[method](),
        delta=first_weights(WIDTH, jax.random.key(seed)),
        n_clients=CLIENTS,
        cohort_size=COHORT,
        columns=columns,
        n_max=int(digits.clients.sizes.max()),
        seed=seed,
    )
    return Problem(federation, digits)


class Counted:
    """Flower's grid, which counts the bytes and the seconds of the rounds.

    Args:
      grid: of Flower.
    """

    def __init__(self, grid: Any):
        self.grid, self.down, self.up = grid, 0, 0
        self.times: list[float] = []

    def get_node_ids(self) -> Any:
        """Those of the grid."""
        return self.grid.get_node_ids()

    def send_and_receive(self, messages: Sequence[Any], **how: Any) -> list[Any]:
        """Sends and counts.

        Args:
          messages: of Flower.
          **how: for the grid.
        """
        began = time.perf_counter()
        is_round = messages[0].metadata.message_type == flower.TRAIN
        replies = list(self.grid.send_and_receive(messages, **how))
        if is_round:
            self.down += sum(map(_bytes, messages))
            self.up += sum(map(_bytes, replies))
            self.times.append(time.perf_counter() - began)
        return replies


def _bytes(message: Any) -> int:
    """Of a message as Flower serialises it."""
    from flwr.common.serde import message_to_proto

    return message_to_proto(message).ByteSize()


def through_flower(
    method: str, seed: int, rounds: int, cpus: int = 1
) -> dict[str, float]:
    """Runs the rounds in a simulation of Flower.

    Args:
      method: "fedavg" or "scaffold".
      seed: of everything.
      rounds: how many.
      cpus: of Ray's that a client takes.

    Returns:
      The scores.
    """
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    federation, digits = problem(method, seed)
    server, found = ServerApp(), []

    @server.main()
    def main(grid: Any, context: Any) -> None:
        counted = Counted(grid)
        state = start(federation)
        state = flower.run(federation, state, rounds, counted, timeout=TIMEOUT)
        found.extend([federation.algorithm.delta(state.server), counted])

    run_simulation(
        server_app=server,
        client_app=flower.client_app(federation, digits.clients.client),
        num_supernodes=CLIENTS,
        backend_config={"client_resources": {"num_cpus": cpus}},
    )
    delta, counted = found
    return _scores(delta, digits, counted.down, counted.up, counted.times)


def by_simulator(method: str, seed: int, rounds: int) -> dict[str, float]:
    """Runs the same rounds by `Simulator`, one call for each.

    Args:
      method: "fedavg" or "scaffold".
      seed: of everything.
      rounds: how many.

    Returns:
      The scores.
    """
    federation, digits = problem(method, seed)
    simulator = ffm.Simulator(
        federation.algorithm, digits.clients, cohort_size=COHORT, seed=seed, **SMALL
    )
    state = simulator.init(federation.delta)
    n_bytes, times = {"downlink_bytes": 0.0, "uplink_bytes": 0.0}, []
    for _ in range(rounds):
        began = time.perf_counter()
        state, metrics = simulator.run(state, 1)
        times.append(time.perf_counter() - began)
        for name in n_bytes:
            n_bytes[name] += float(metrics[name][0])
    down, up = n_bytes.values()
    return _scores(state.delta, digits, down, up, times)


def _scores(
    delta: Any, digits: Digits, down: float, up: float, times: Sequence[float]
) -> dict[str, float]:
    """Accuracy on the test, bytes, and seconds of a round after the first."""
    batch = {name: np.asarray(column) for name, column in digits.test.items()}
    found = np.argmax(logits(delta, (), batch, None), axis=-1)
    later = times[1:] or times
    return {
        "accuracy": float(np.mean(found == batch["label"])),
        "down": float(down),
        "up": float(up),
        "round_seconds": float(np.median(later)),
    }


def measured(
    methods: Sequence[str], seeds: Sequence[int], rounds: int, cpus: int
) -> Iterator[dict[str, Any]]:
    """Runs all, one after the other.

    Args:
      methods: of `METHODS`.
      seeds: of the runs.
      rounds: of each.
      cpus: of Ray's that a client of Flower takes.

    Yields:
      A row for each run.
    """
    for method in methods:
        for seed in seeds:
            for way in WAYS:
                run = by_simulator
                if way == "flower":
                    run = functools.partial(through_flower, cpus=cpus)
                began = time.perf_counter()
                scores = run(method, seed, rounds)
                scores["seconds"] = time.perf_counter() - began
                yield {"method": method, "seed": seed, "way": way, **scores}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds with halves of their 95 % intervals, as Markdown.

    Args:
      rows: of `measured`, of several seeds.
    """
    heads = (
        "method", "way", "accuracy, %", "MB down", "MB up", "seconds", "ms a round"
    )  # fmt: skip
    lines = [_line(heads), _line(["---"] * len(heads))]
    for method in dict.fromkeys(row["method"] for row in rows):
        of = {way: _column(rows, method, way) for way in WAYS}
        lines += [_line([method, way, *_cells(own)]) for way, own in of.items()]
        pairs = zip(of["flower"], of["simulator"], strict=True)
        apart = [a["accuracy"] - b["accuracy"] for a, b in pairs]
        difference = plus_minus(apart, scale=100, digits=2)
        lines.append(_line([method, "paired difference", difference, *[""] * 4]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _column(rows: Sequence[Mapping[str, Any]], method: str, way: str) -> list:
    """The rows of a method on one way, by seed."""
    own = [row for row in rows if (row["method"], row["way"]) == (method, way)]
    return sorted(own, key=lambda row: row["seed"])


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each score over the seeds."""
    scales = {
        "accuracy": (100, 2),
        "down": (1e-6, 3),
        "up": (1e-6, 3),
        "seconds": (1, 1),
        "round_seconds": (1000, 1),
    }
    return [
        plus_minus([row[name] for row in rows], scale=scale, digits=digits)
        for name, (scale, digits) in scales.items()
    ]


def main() -> None:
    """Prints a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=SUMMARY)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--cpus", type=int, default=1, help="that a client takes")
    given = parser.parse_args()
    rows = []
    for row in measured(given.only, given.seeds, given.rounds, given.cpus):
        print(json.dumps(row), flush=True)
        rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
