"""What is a model for each client worth where clients disagree?

Thirty-two clients, eight of each of four domains of rated sentences (tweets, product
reviews, film reviews, editorials), 40 training sentences each; every second client of a
domain calls good what the others call bad, so that no shared model can please all. Of
each domain two clients, one of either mind, take no part in training. MiniLM, LoRA of
rank 8 on query and value and a head; 20 rounds of 4 SGD steps of 8 sentences, all of the
24 clients in every round, as many steps for what is personal.

Score: accuracy of a client's own model on 15 sentences of its own, the mean over
clients that trained; before it nobody adapts but where the method says so (FedBABU,
Per-FedAvg, fine-tuned FedAvg). Beside it the worst tenth of clients, the spread between
them, the server's model, and the clients that took no part: each begins with the
server's model (of IFCA with the cluster of the lowest loss on its training sentences)
and takes 20 steps on those; of local training these steps alone.

Controls: local training on shuffled labels; and FedAvg, which must be worse than local
training, or the clients do not disagree in what is learned.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, evaluation, models, peft, study, tasks
from fedjax_fm.algorithms.feddpa import Adapters
from fedjax_fm.algorithms.personal import IFCAState
from fedjax_fm.experiments.shared.sentences import (
    Arrays,
    deal,
    of_split,
    sentences,
    shuffled_labels,
)

HEAD = "classifier"
Model = tuple[Any, Any]  # (delta, backbone)
Models = Callable[[int], Model]


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run personal`; change one by `--set name=value`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 24
    rank: int = 8
    per_domain: int = 8  # clients, every second one of the other mind
    new_per_domain: int = 2  # of them, that take no part; even
    train: int = 40  # sentences of a client
    test: int = 15
    rounds: int = 20
    tuning_rounds: int = 10
    local_steps: int = 4
    batch_size: int = 8
    own_steps: int = 20  # of a client that adapts a finished model
    penalty: float = 1.0  # Ditto's
    envelope: float = 15.0  # pFedMe's penalty
    inner_rate: float = 0.05  # Per-FedAvg's
    clusters: int = 2
    personal: str = HEAD
    grid: tuple[float, ...] = (0.03, 0.1, 0.3)  # learning rate of SGD
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            max_length=12,
            per_domain=4,
            train=8,
            test=6,
            rounds=2,
            tuning_rounds=1,
            local_steps=2,
            own_steps=2,
            grid=(0.1,),
            seeds=(0, 1),
        )


class Client(NamedTuple):
    """One client's arrays."""

    train: Arrays
    test: Arrays

    def turned(self) -> "Client":
        """The same with good for bad and bad for good."""
        return Client(*({**part, "label": 1 - part["label"]} for part in self))


class Data(NamedTuple):
    """The clients that train, those that come later, and the model before training."""

    adapted: peft.Adapted
    clients: list[Client]
    new: list[Client]


def data(config: Config, seed: int, split: str) -> Data:
    """Deals the split's documents to clients."""
    found = sentences(config.model, config.max_length)
    rows = of_split(found, split, 0.4)
    sizes = {"train": config.train, "test": config.test}
    dealt = deal(found, rows, seed, per_domain=config.per_domain, **sizes)
    clients, new = [], []
    for k, one in enumerate(dealt):
        client = Client(found.take(one.train), found.take(one.test))
        number = k % config.per_domain
        group = new if number < config.new_per_domain else clients
        group.append(client.turned() if number % 2 else client)
    whole = models.from_pretrained(
        config.model, num_labels=2, pooling="mean", seed=seed
    )
    method = peft.lora(config.rank, 2.0 * config.rank, targets=r"query|value")
    return Data(peft.apply(whole, method, jax.random.key(seed)), clients, new)


def itself(delta: Any) -> Any:
    """A delta that is the model as it is."""
    return delta


class Made(NamedTuple):
    """A method, ready to run."""

    algorithm: ffm.Algorithm
    task: ffm.Task  # of the clients' models
    finish: dict[str, Any] | None = None  # arguments of `fine_tune` at its end
    alone: Callable[[Any], Any] = itself  # a delta as a model of the task


def walk(run: study.Run) -> dict[str, Any]:
    """What a client does in a round, as arguments of a method."""
    config = run.config
    return {
        "client_optimizer": optax.sgd(run["learning_rate"]),
        "local_steps": config.local_steps,
        "batch_size": config.batch_size,
    }


def adapting(run: study.Run, **how: Any) -> dict[str, Any]:
    """How a client adapts a finished model, as arguments of `fine_tune`."""
    return {**walk(run), "local_steps": run.config.own_steps, "seed": run.seed, **how}


def one_tree(run: study.Run, method: Callable, **how: Any) -> Made:
    """A method whose models are deltas of one task."""
    task = tasks.classification(run.data.adapted)
    return Made(algorithm=method(task, **walk(run), **how), task=task)


def tuned(run: study.Run) -> Made:
    """FedAvg, whose model each client fine-tunes at the end."""
    return one_tree(run, ffm.fedavg)._replace(finish=adapting(run))


def fedbabu(run: study.Run) -> Made:
    """The body under the first head, then a head for each client."""
    part = {"personal": run.config.personal}
    made = one_tree(run, algorithms.fedbabu, **part)
    return made._replace(finish=adapting(run, **part))


def per_fedavg(run: study.Run) -> Made:
    """A start, then one step of each client."""
    rate = run.config.inner_rate
    made = one_tree(run, algorithms.per_fedavg, inner_rate=rate)
    one_step = {"client_optimizer": optax.sgd(rate), "local_steps": 1}
    return made._replace(finish=adapting(run, **one_step))


def apfl(run: study.Run) -> Made:
    """Products of both adapters are mixed, not their factors."""
    task = tasks.classification(run.data.adapted)
    both = tasks.classification(peft.beside(run.data.adapted))
    how = {"mix_rate": run["learning_rate"], "personal_task": both}
    algorithm = algorithms.apfl(task, **how, **walk(run))
    return Made(algorithm=algorithm, task=both, alone=shared_alone)


def shared_alone(delta: Any) -> Adapters:
    """An adapter beside which a private one counts nothing."""
    return Adapters(shared=delta, private=delta, mix=jnp.float32(0))


def of_config(method: Callable, **names: str) -> Callable[[study.Run], Made]:
    """A method whose arguments are settings.

    Args:
      method: the factory.
      **names: {argument: setting}.
    """

    def make(run: study.Run) -> Made:
        how = {name: getattr(run.config, field) for name, field in names.items()}
        return one_tree(run, method, **how)

    return make


def starts(run: study.Run, found: study.Simulated) -> list[Model]:
    """What a client that took no part may begin with."""
    server, backbone = found.state.carry.server, run.data.adapted.backbone
    if not isinstance(server, IFCAState):
        return [(found.state.delta, backbone)]
    return [
        (jax.tree.map(lambda x, j=j: x[j], server.models), backbone)
        for j in range(run.config.clusters)
    ]


def tuned_on(run: study.Run, made: Made, start: Model, rows: list[Arrays]) -> Models:
    """Models of clients that adapt one model to their rows, which they download."""
    run.sent(down=len(rows) * ffm.trees.nbytes(start[0]))
    return algorithms.fine_tune(
        tasks.classification(run.data.adapted),
        model=start,
        population=ffm.Population.from_clients(rows),
        **(made.finish or adapting(run)),
    )


def models_of(run: study.Run, made: Made, found: study.Simulated) -> Callable:
    """`client -> (delta, backbone)`: first those that trained, then the new ones."""
    clients, new = run.data.clients, [one.train for one in run.data.new]
    own = found.model
    if made.finish is not None:
        rows = [one.train for one in clients]
        own = tuned_on(run, made, found.model(), rows)
    begins = starts(run, found)
    task = tasks.classification(run.data.adapted)
    adapted = [tuned_on(run, made, start, new) for start in begins]

    def model(client: int | None) -> Model:
        if client is None:
            return found.model()
        k = client - len(clients)
        if k < 0:
            return own(client)
        losses = [ffm.evaluate(task, *x, new[k])["loss"].mean() for x in begins]
        delta, backbone = adapted[int(np.argmin(losses))](k)
        return made.alone(delta), backbone

    return model


def trained(make: Callable[[study.Run], Made], shuffle: bool = False) -> Callable:
    """An arm of one method.

    Args:
      make: the method.
      shuffle: whether training labels are permuted.
    """

    def arm(run: study.Run) -> dict[str, float]:
        config, found_data, made = run.config, run.data, make(run)
        train = [one.train for one in found_data.clients]
        if shuffle:
            train = [shuffled_labels(one, run.seed) for one in train]
        found = run.simulate(
            made.algorithm,
            ffm.Population.from_clients(train),
            found_data.adapted.delta,
            config.tuning_rounds if run.is_tuning else config.rounds,
            backbone=found_data.adapted.backbone,
            cohort_size=len(train),
        )
        everybody = [*found_data.clients, *found_data.new]
        scores = evaluation.personal_scores(
            made.task,
            models_of(run, made, found),
            ffm.Population.from_clients([one.test for one in everybody]),
            new=range(len(train), len(everybody)),
        )
        assert scores.new is not None
        run.clients = [mine for mine, _ in scores.each.values()][: len(train)]
        return {
            "accuracy": scores.own.mean,
            "worst": scores.own.worst_decile,
            "spread": scores.own.deviation,
            "shared": scores.shared.mean,
            "new": scores.new.mean,
        }

    return arm


HEADS = {"personal": "personal"}
LOCAL = of_config(algorithms.local_only)
ROWS = (
    ("local", LOCAL, "local only"),
    ("fedavg", of_config(ffm.fedavg), "FedAvg"),
    ("tuned", tuned, "FedAvg, fine-tuned"),
    ("fedper", of_config(algorithms.fedper, **HEADS), "FedPer"),
    ("fedrep", of_config(algorithms.fedrep, **HEADS), "FedRep"),
    ("fedbabu", fedbabu, "FedBABU"),
    ("ditto", of_config(algorithms.ditto, penalty="penalty"), "Ditto"),
    ("pfedme", of_config(algorithms.pfedme, penalty="envelope"), "pFedMe"),
    ("apfl", apfl, "APFL"),
    ("fedala", of_config(algorithms.fedala, **HEADS), "FedALA"),
    ("per_fedavg", per_fedavg, "Per-FedAvg (FO)"),
    ("ifca", of_config(algorithms.ifca, clusters="clusters"), "IFCA"),
)
PERSONAL = tuple(name for name, _, _ in ROWS[3:])
GRID = {"learning_rate": "grid"}
PERCENT = {"unit": "%", "scale": 100.0}
STUDY = study.Study(
    question="What is a model for each client worth where clients disagree?",
    expected=(
        "FedAvg near chance and below local only; IFCA first, as two models please all; "
        "FedPer and FedRep above local only, as a head alone can turn an answer; Ditto, "
        "APFL and fine-tuned FedAvg near local only; Per-FedAvg's one step too short; "
        "the worst tenth in the same order; new clients best with IFCA"
    ),
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(
        study.Score("worst", "worst tenth of clients", **PERCENT),
        study.Score("spread", "deviation between clients", highest=False, **PERCENT),
        study.Score("shared", "the server's model", **PERCENT),
        study.Score("new", "clients that took no part, adapted", **PERCENT),
    ),
    arms=(
        *(study.Arm(name, trained(make), label, GRID) for name, make, label in ROWS),
        study.Arm(
            "shuffled", trained(LOCAL, True), "local, shuffled labels", like="local"
        ),
    ),
    comparisons=[
        *((name, "local") for name in ("tuned", *PERSONAL)),
        *((name, "tuned") for name in PERSONAL),
    ],
    controls=(
        study.Control("shuffled", "local"),
        study.Control(
            "fedavg", "local", "The clients do not disagree in what is learned."
        ),
    ),
)
