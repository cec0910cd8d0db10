"""What do clients learn from models of another architecture, by FedDF and by FedMD?

The 1797 handwritten digits of scikit-learn (Alpaydin and Kaynak, 1998). A quarter is
for tuning; of the rest, dealt anew for every seed, 270 are the test, 300 are public,
and 20 clients have the others, by a Dirichlet partition over the label (alpha 0.1).
Every other client has a perceptron (9,610 weights), the others two layers of
convolutions (6,090). 30 rounds.

FedDF: 10 clients a round, 5 epochs; the server distils 100 steps of 64 unlabelled
images (Adam with a cosine). Alone is the same without server steps: federated averaging
in each group. FedMD: models start from 100 public images with labels; all clients keep
their own, agree on 200 unlabelled ones a round, digest by mean absolute error, revisit
1 epoch. Alone: without digests. Each of the four chooses among nine settings: SGD's
rate by the server's rate, the digest's rate, or the epochs of those alone.

Score: accuracy on images of all classes, mean over the clients' models, half of them of
each architecture (with FedDF a client's model is its group's). Controls: teachers whose
answers are paired with other images, and untrained models.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import study
from fedjax_fm.algorithms.feddf import feddf
from fedjax_fm.algorithms.fedmd import fedmd
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.feddf.models import (
    BOTH,
    NAMES,
    TASKS,
    architectures,
    weights,
)
from fedjax_fm.experiments.shared.digits import Arrays, Digits, deal
from fedjax_fm.types import Algorithm, Tree


@dataclass(frozen=True)
class Config:
    """Settings."""

    clients: int = 20
    alpha: float = 0.1
    test: int = 270
    public: int = 300  # a third of them with labels; FedMD agrees on two thirds a round
    rounds: int = 30
    batch_size: int = 16
    server_steps: int = 100
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)  # of the clients' SGD
    server_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    digest_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    group_epochs: tuple[int, ...] = (1, 5, 20)  # of groups alone
    client_epochs: tuple[int, ...] = (1, 3, 10)  # of clients alone
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            rounds=2,
            server_steps=10,
            rates=(0.3,),
            server_rates=(3e-3,),
            digest_rates=(1e-3,),
            group_epochs=(5,),
            client_epochs=(1,),
            seeds=(0, 1),
        )


def data(config: Config, seed: int, split: str) -> Digits:
    """Deals the split's images."""
    return deal(
        seed,
        split,
        clients=config.clients,
        alpha=config.alpha,
        test=config.test,
        public=config.public,
        smallest=4,
    )


def groups_of(found: Digits) -> np.ndarray:
    """The architecture of each client."""
    return np.arange(found.clients.n_clients) % len(NAMES)


def accuracies(
    models: list[Tree], groups: np.ndarray, test: Arrays
) -> dict[str, float]:
    """Means over the models of each architecture, and over architectures.

    Args:
      models: weights.
      groups: the architecture of each model.
      test: images of all classes.
    """
    found = []
    for w, group in zip(models, groups, strict=True):
        scores = ffm.evaluate(TASKS[group], w, (), test)
        found.append(means(scores)["accuracy"])
    all_of_them = np.array(found)
    each = {
        name: float(np.mean(all_of_them[groups == group]))
        for group, name in enumerate(NAMES)
    }
    mean = np.mean(list(each.values()))
    return {"accuracy": float(mean), **each}


def own_models(done: study.Simulated, groups: np.ndarray) -> list[Tree]:
    """The model of each client, of its architecture."""
    return [done.model(client)[0][group] for client, group in enumerate(groups)]


def fusion(
    epochs: int | None = 5,
    average: Any = "logits",
    distil: bool = True,
    shuffle: bool = False,
) -> Any:
    """An arm: FedDF, or without distillation federated averaging in each group.

    Args:
      epochs: of a client in a round; None if they are tuned.
      average: of the teachers, as for `feddf`.
      distil: whether the server takes steps.
      shuffle: whether the teachers' answers are paired with other images.
    """

    def arm(run: study.Run) -> dict[str, float]:
        config, found = run.config, run.data
        groups, steps, rate = groups_of(found), 0, 0.0
        if distil:
            steps = config.server_steps
            rate = optax.cosine_decay_schedule(run["server_rate"], steps)
        algorithm = feddf(
            architectures(run["rate"]),
            groups,
            {"x": found.public["x"]},
            server_steps=steps,
            server_optimizer=optax.adam(rate),
            server_batch_size=64,
            average=average,
            epochs=run["epochs"] if epochs is None else epochs,
            batch_size=config.batch_size,
        )
        if shuffle:
            algorithm = with_shuffled_teachers(algorithm, len(found.public["x"]))
        done = run.simulate(
            algorithm,
            found.clients,
            weights(run.seed),
            config.rounds,
            backbone=((), ()),
            cohort_size=len(groups) // 2,
            task=BOTH,
            test=found.test,
        )
        return accuracies(own_models(done, groups), groups, found.test)

    return arm


def with_shuffled_teachers(algorithm: Algorithm, n_public: int) -> Algorithm:
    """The same, but the sums of answers are in another order of images.

    Args:
      algorithm: FedDF.
      n_public: images.
    """
    rows = np.random.default_rng(0).permutation(n_public)

    def shuffled(exchange: Any) -> Any:
        def server(state, aggregate, key):
            value = aggregate.value._replace(opinions=aggregate.value.opinions[rows])
            return exchange.server(state, aggregate._replace(value=value), key)

        return exchange._replace(server=server)

    exchanges = tuple(shuffled(exchange) for exchange in algorithm.exchanges)
    return algorithm._replace(exchanges=exchanges)


def transferred(run: study.Run) -> tuple[Tree, ...]:
    """Both models after training on the labelled third of the public images."""
    labelled = {
        name: array[: len(array) // 3] for name, array in run.data.public.items()
    }
    population = ffm.Population.from_clients([labelled])

    def one(architecture: Any, start: Tree) -> Tree:
        algorithm = ffm.fedavg(
            architecture.task,
            architecture.optimizer,
            epochs=20,
            batch_size=run.config.batch_size,
        )
        simulator = ffm.Simulator(algorithm, population, cohort_size=1, seed=run.seed)
        after, _ = simulator.run(simulator.init(start), 1)
        return after.delta

    def each() -> tuple[Tree, ...]:
        pairs = zip(architectures(run["rate"]), weights(run.seed), strict=True)
        return tuple(one(*pair) for pair in pairs)

    return run.once(("transferred", run["rate"]), each)


def digest(run: study.Run) -> dict[str, float]:
    """FedMD."""
    return parties(run, epochs=1, digest_optimizer=optax.adam(run["digest_rate"]))


def clients_alone(run: study.Run) -> dict[str, float]:
    """FedMD without digests."""
    return parties(run, epochs=run["epochs"], digest_epochs=0)


def parties(run: study.Run, **how: Any) -> dict[str, float]:
    """Accuracies of the clients' models after FedMD.

    Args:
      run: of the arm.
      **how: settings of `fedmd`.
    """
    config, found = run.config, run.data
    groups = groups_of(found)
    algorithm = fedmd(
        architectures(run["rate"]),
        groups,
        {"x": found.public["x"]},
        n_classes=10,
        n_public=2 * len(found.public["x"]) // 3,
        digest_batch_size=32,
        start_epochs=10,
        batch_size=config.batch_size,
        **how,
    )
    done = run.simulate(
        algorithm,
        found.clients,
        transferred(run),
        config.rounds,
        backbone=((), ()),
        cohort_size=len(groups),
    )
    return accuracies(own_models(done, groups), groups, found.test)


def start(run: study.Run) -> dict[str, float]:
    """The models that FedMD starts from."""
    groups, both = np.arange(len(NAMES)), transferred(run)
    return accuracies(list(both), groups, run.data.test)


def untrained(run: study.Run) -> dict[str, float]:
    """Random weights."""
    groups, both = np.arange(len(NAMES)), weights(run.seed)
    return accuracies(list(both), groups, run.data.test)


ARMS = (
    study.Arm(
        "groups_alone",
        fusion(epochs=None, distil=False),
        "each group alone",
        {"rate": "rates", "epochs": "group_epochs"},
    ),
    study.Arm(
        "feddf", fusion(), "FedDF", {"rate": "rates", "server_rate": "server_rates"}
    ),
    study.Arm(
        "undistilled", fusion(distil=False), "FedDF without distillation", like="feddf"
    ),
    study.Arm(
        "probabilities",
        fusion(average="probabilities"),
        "FedDF, mean probabilities",
        like="feddf",
    ),
    study.Arm(
        "clients_alone",
        clients_alone,
        "each client alone",
        {"rate": "rates", "epochs": "client_epochs"},
    ),
    study.Arm(
        "fedmd", digest, "FedMD", {"rate": "rates", "digest_rate": "digest_rates"}
    ),
    study.Arm("start", start, "FedMD's start, no rounds", like="fedmd"),
    study.Arm(
        "shuffled_teachers",
        fusion(shuffle=True),
        "FedDF, shuffled teachers",
        like="feddf",
    ),
    study.Arm("untrained", untrained, "nobody trained"),
)

STUDY = study.Study(
    question="What do clients learn from others whose models have another architecture, "
    "by FedDF and by FedMD?",
    expected="FedDF above each group alone and above mean probabilities; FedMD above each "
    "client alone and above its start",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=ARMS,
    comparisons=(
        ("feddf", "groups_alone"),
        ("feddf", "undistilled"),
        ("probabilities", "groups_alone"),
        ("probabilities", "feddf"),
        ("shuffled_teachers", "undistilled"),
        ("fedmd", "clients_alone"),
        ("fedmd", "start"),
    ),
    controls=(
        study.Control(
            "shuffled_teachers",
            "feddf",
            "What helps is not what the teachers say of an image.",
        ),
        study.Control("untrained", "fedmd"),
        study.Control("untrained", "groups_alone"),
    ),
    scores=tuple(study.Score(name, unit="%", scale=100.0) for name in NAMES),
)
