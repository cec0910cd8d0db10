"""Which federated optimiser suits LoRA, on clients that are alike and that are not?

FedLLM-Bench's seven methods, FedNova and FedDyn. Rated sentences of four domains on 24
clients, by a Dirichlet partition over the label (alpha 0.1 and 1) and IID. MiniLM's features are
computed once; on them stands a layer of 64 units whose random kernel is frozen and has a
LoRA of rank 8, and a head that is trained. 6 clients a round, 40 rounds of 5 steps of 8.

Each method gets the same budget: four rates of the clients times three of the server (of
FedDyn its alpha), all lanes of one compiled sweep on documents that no seed of the study
sees. Rates are chosen by the loss on the sweep's test; FedAdam's kind by smaller server
rates, as its steps do not shrink with the gradients.

Score: accuracy on the test, of all domains; alpha 0.1 decides. Controls: shuffled
labels; the model before training.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import algorithms, models, peft, study, tasks
from fedjax_fm.experiments.shared.features import standard_features
from fedjax_fm.experiments.shared.sentences import (
    Arrays,
    of_split,
    sentences,
    shuffled_labels,
)
from fedjax_fm.population import DirichletPartitioner, IidPartitioner


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run optimisers`; change one by `--set name=value`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 24
    sentences: int = 2400  # of both splits together
    clients: int = 24
    cohort: int = 6
    test_share: float = 0.25
    hidden: int = 64
    rank: int = 8
    rounds: int = 40
    local_steps: int = 5
    batch_size: int = 8
    client_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    server_rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    adaptive_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    alphas: tuple[float, ...] = (0.03, 0.1, 0.3)  # FedDyn's
    partitions: tuple[str, ...] = ("0.1", "1", "iid")
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes = {"sentences": 240, "clients": 6, "cohort": 2, "rounds": 2}
        rates = {"client_rates": (0.1,), "server_rates": (1.0,), "alphas": (0.1,)}
        rates |= {"adaptive_rates": (0.01,)}
        few = {"partitions": ("0.1",), "seeds": (0,), "max_length": 8}
        return dataclasses.replace(self, **sizes, **rates, **few)


class Data(NamedTuple):
    """A small model, its clients under each partition, and a test for all."""

    task: ffm.Task
    adapted: peft.Adapted
    clients: dict[str, list[Arrays]]
    test: Arrays


def _partitioner(n: int, name: str, seed: int) -> Any:
    """IID, or Dirichlet over the label with clients of like sizes, of which some may be empty."""
    if name == "iid":
        return IidPartitioner(n, seed=seed)
    how = {"min_partition_size": 0, "self_balancing": True}
    return DirichletPartitioner(n, "label", float(name), seed=seed, **how)


class Layers(nnx.Module):
    """A layer and a head on features."""

    def __init__(self, n_in: int, hidden: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(n_in, hidden, rngs=rngs)
        self.classifier = nnx.Linear(hidden, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[n, 2]."""
        return self.classifier(jnp.tanh(self.hidden(x)))


@functools.cache
def of_features(config: Config) -> tuple[Any, Arrays]:
    """The sentences, and MiniLM's features of them, of mean 0 and deviation 1."""
    found = sentences(config.model, config.max_length)
    drawn = np.random.default_rng(0).permutation(len(found.arrays["label"]))
    rows = drawn[: config.sentences]
    kept = found._replace(
        arrays=found.take(rows),
        domain=found.domain[rows],
        document=found.document[rows],
    )
    whole = models.from_pretrained(config.model, num_labels=2, pooling="mean", seed=0)
    ((features,),) = standard_features(whole, [kept.arrays])
    return kept, features


@functools.cache
def data(config: Config, seed: int, split: str) -> Data:
    """Deals the split's sentences in three ways."""
    found, features = of_features(config)
    rows = of_split(found, split, 0.4)
    rows = np.random.default_rng(seed).permutation(rows)
    n_test = round(config.test_share * len(rows))
    test, train = rows[:n_test], rows[n_test:]

    def take(some: np.ndarray) -> Arrays:
        return {name: array[some] for name, array in features.items()}

    table = {"label": features["label"][train]}
    clients = {}
    for name in config.partitions:
        parts = _partitioner(config.clients, name, seed).partition(table)
        clients[name] = [take(train[part]) for part in parts if len(part)]
    layers = Layers(features["x"].shape[1], config.hidden, nnx.Rngs(seed))
    method = peft.lora(config.rank, 2.0 * config.rank, targets="hidden")
    adapted = peft.apply(layers, method, jax.random.key(seed))
    return Data(
        task=tasks.classification(adapted),
        adapted=adapted,
        clients=clients,
        test=take(test),
    )


# Methods, as functions of the two rates that are swept


class Method(NamedTuple):
    """A method and the rates of its second axis."""

    make: Callable[..., ffm.Algorithm]  # (task, client's, server's, **walk)
    rates: str = "server_rates"


def by_server(name: str, **how: Any) -> Method:
    """A method with any optimizer at the server."""
    factory = getattr(algorithms, name)

    def make(task, client, server, **walk):
        return factory(task, optax.sgd(client), optax.sgd(server), **how, **walk)

    return Method(make)


def by_name(name: str, rates: str) -> Method:
    """A method that takes its server's rate by name."""
    factory = getattr(algorithms, name)

    def make(task, client, server, **walk):
        optimizer = optax.sgd(client)
        return factory(task, optimizer, server_learning_rate=server, **walk)

    return Method(make, rates)


def feddyn(task, client, alpha, **walk):
    """FedDyn, which has no rate of the server."""
    return algorithms.feddyn(task, optax.sgd(client), alpha=alpha, **walk)


METHODS = {
    "fedavg": by_server("fedavg"),
    "fedprox": by_server("fedprox", mu=0.01),
    "scaffold": by_server("scaffold"),
    "fedavgm": by_name("fedavgm", "server_rates"),
    "fedadagrad": by_name("fedadagrad", "adaptive_rates"),
    "fedyogi": by_name("fedyogi", "adaptive_rates"),
    "fedadam": by_name("fedadam", "adaptive_rates"),
    "fednova": by_server("fednova"),
    "feddyn": Method(feddyn, "alphas"),
}


def walk(config: Config) -> dict[str, int]:
    """What a client does in a round, as arguments of a method."""
    return {"local_steps": config.local_steps, "batch_size": config.batch_size}


class Rates(NamedTuple):
    """The best of a sweep."""

    client: float
    server: float


@functools.cache
def tuned(config: Config, name: str, kind: str) -> Rates:
    """The rates of the lowest loss on the tuning split's test, in one compiled sweep."""
    made, method = data(config, STUDY.tuning_seed, "tuning"), METHODS[name]
    grid = {"client": config.client_rates, "server": getattr(config, method.rates)}
    only = [values[0] for values in grid.values() if len(values) == 1]
    if len(only) == len(grid):
        return Rates(*only)

    def algorithm(client, server):
        return method.make(made.task, client, server, **walk(config))

    population = ffm.Population.from_clients(made.clients[kind])
    simulator = ffm.Simulator(
        algorithm(0.1, 0.1),
        population,
        backbone=made.adapted.backbone,
        cohort_size=min(config.cohort, population.n_clients),
        devices=1,
    )
    delta = made.adapted.delta
    found = ffm.sweep(simulator, delta, config.rounds, hyper=grid, algorithm=algorithm)

    def loss_of(lane):
        return made.task.loss(lane, made.adapted.backbone, made.test, None)[0].mean()

    losses = np.array(jax.vmap(loss_of)(found.delta))
    losses[found.rounds < config.rounds] = np.inf
    best = int(np.nanargmin(losses))
    return Rates(*(float(found.hyper[axis][best]) for axis in grid))


def trained(name: str, shuffle: bool = False) -> Callable:
    """An arm of one method, under every partition.

    Args:
      name: of the method.
      shuffle: whether training labels are permuted.
    """

    def accuracy(run: study.Run, kind: str) -> float:
        config, made = run.config, run.data
        rates, clients = tuned(config, name, kind), made.clients[kind]
        run.notes[f"rates, {kind}"] = rates._asdict()
        if shuffle:
            clients = [shuffled_labels(one, run.seed) for one in clients]
        found = run.simulate(
            METHODS[name].make(made.task, *rates, **walk(config)),
            ffm.Population.from_clients(clients),
            made.adapted.delta,
            config.rounds,
            backbone=made.adapted.backbone,
            cohort_size=min(config.cohort, len(clients)),
            task=made.task,
            test=made.test,
        )
        return found.scores["accuracy"]

    def arm(run: study.Run) -> dict[str, float]:
        kinds = run.config.partitions
        return {SCORES[kind].name: accuracy(run, kind) for kind in kinds}

    return arm


def untrained(run: study.Run) -> dict[str, float]:
    """The model as it begins."""
    made = run.data
    start = made.adapted
    found = ffm.evaluate(made.task, start.delta, start.backbone, made.test)
    score = float(found["accuracy"].mean())
    return {SCORES[kind].name: score for kind in run.config.partitions}


PERCENT = {"unit": "%", "scale": 100.0}
SCORES = {
    "0.1": study.Score("accuracy", "alpha 0.1", **PERCENT),
    "1": study.Score("mild", "alpha 1", **PERCENT),
    "iid": study.Score("iid", "IID", **PERCENT),
}
STUDY = study.Study(
    question="Which federated optimiser suits LoRA, on clients that differ?",
    expected=(
        "IID: no difference but for FedAvgM and the adaptive servers, which are faster "
        "by a point or two in 40 rounds; alpha 1 the same; alpha 0.1: SCAFFOLD, FedDyn "
        "and the adaptive servers above FedAvg by two points or more, FedProx and "
        "FedNova equal to it, as all make equal work"
    ),
    config=Config,
    data=data,
    primary=SCORES["0.1"],
    scores=(SCORES["1"], SCORES["iid"]),
    arms=(
        *(study.Arm(name, trained(name)) for name in METHODS),
        study.Arm("shuffled", trained("fedavg", True), "fedavg, shuffled labels"),
        study.Arm("untrained", untrained, "before training"),
    ),
    comparisons=[(name, "fedavg") for name in METHODS if name != "fedavg"],
    controls=(
        study.Control("shuffled", "fedavg"),
        study.Control("untrained", "fedavg"),
    ),
)
