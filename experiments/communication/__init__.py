"""What does a byte buy, with each of the compressed methods?

Task "image": scikit-learn's digits on 24 clients (Dirichlet 0.3 over the label) and two
layers of convolutions, 6,090 weights; 10 clients a round, 60 rounds. Task "text" (`--set
task=text`): rated sentences of four domains, 24 clients of one domain each, LoRA of rank 4
on MiniLM; 6 clients a round, 16 rounds. Each arm has three learning rates, tried on
clients that no seed sees; DIANA, EF21 and SoteriaFL take one step a round, over as many
examples as the local steps of others, from a grid of larger rates. SoteriaFL is without
noise: clipped and compressed, not private.

Scores: accuracy when a quarter of the bytes has travelled that FedAvg sends in all its
rounds, both ways (it decides; FedOBD and FLASC, which compress both ways, go on for three
times as many rounds); after equal rounds; after a quarter of FedAvg's seconds, with 50 ms
a local step and 1 or 100 Mbit/s either way; and what the target accuracy costs, left out
where it is not reached.

Headlines: FedPAQ and FedOBD save bytes and lose nothing at equal rounds (`rounds` beside
FedAvg's); EF21's memory beats DIANA's for the same bytes (their comparison); FLASC keeps
LoRA's accuracy at a quarter of both ways (`rounds`); DoCoFL adds what is saved down to
what is saved up (`accuracy`). Controls: shuffled labels; the model before training.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, models, peft, study, tasks
from fedjax_fm.experiments.feddf.models import TASKS, weights
from fedjax_fm.experiments.shared import digits, sentences
from fedjax_fm.experiments.shared.sentences import shuffled_labels
from fedjax_fm.study.judged import joined


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run communication`; change one by `--set name=value`."""

    task: Literal["image", "text"] = "image"
    clients: int = 24
    alpha: float = 0.3  # of the images' Dirichlet partition
    test: int = 270  # images, or sentences
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 16
    rank: int = 4
    train: int = 40  # sentences of a client
    image_rounds: int = 60
    image_cohort: int = 10
    image_target: float = 0.8  # accuracy
    text_rounds: int = 16
    text_cohort: int = 6
    text_target: float = 0.65
    more_rounds: int = 3  # times as many, of methods that compress both ways
    local_steps: int = 4
    batch_size: int = 8
    kept: float = 0.05  # share of the entries that top-k sends
    dropped: float = 0.2  # by FedOBD; the largest leaf of the net is 0.76 of it
    share: float = 0.25  # of FedAvg's bytes and seconds
    step_seconds: float = 0.05
    grid: tuple[float, ...] = (0.03, 0.1, 0.3)  # of local steps
    gradient_grid: tuple[float, ...] = (0.1, 0.3, 1.0)  # of one step a round
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        rounds = {"image_rounds": 2, "text_rounds": 2, "more_rounds": 1}
        sizes = {"clients": 12, "train": 8, "test": 60, "text_cohort": 2}
        one = {"grid": (0.1,), "gradient_grid": (0.3,), "seeds": (0,)}
        return dataclasses.replace(self, **rounds, **sizes, **one)

    def planned(self, name: str) -> Any:
        """The task's rounds, cohort or target."""
        return getattr(self, f"{self.task}_{name}")


class Data(NamedTuple):
    """Clients, and a model that is trained on them."""

    task: ffm.Task
    delta: Any
    backbone: Any
    clients: list[digits.Arrays]
    test: digits.Arrays


def data(config: Config, seed: int, split: str) -> Data:
    """Deals the split's images or sentences to clients."""
    if config.task == "image":
        sizes = {"clients": config.clients, "alpha": config.alpha, "test": config.test}
        dealt = digits.deal(seed, split, **sizes)
        clients = [dealt.clients.client(k) for k in range(dealt.clients.n_clients)]
        return Data(
            task=TASKS[1],
            delta=weights(seed)[1],
            backbone=(),
            clients=clients,
            test=dealt.test,
        )
    found = sentences.sentences(config.model, config.max_length)
    rows = sentences.of_split(found, split, 0.4)
    sizes = {"train": config.train, "test": config.test // config.clients}
    each = sentences.deal(found, rows, seed, per_domain=config.clients // 4, **sizes)
    how = {"num_labels": 2, "pooling": "mean", "seed": seed}
    method = peft.lora(config.rank, 2.0 * config.rank, targets=r"query|value")
    whole = models.from_pretrained(config.model, **how)
    adapted = peft.apply(whole, method, jax.random.key(seed))
    return Data(
        task=tasks.classification(adapted),
        delta=adapted.delta,
        backbone=adapted.backbone,
        clients=[found.take(one.train) for one in each],
        test=joined([found.take(one.test) for one in each]),
    )


def walk(run: study.Run) -> dict[str, int]:
    """What a client does in a round, as arguments of a method."""
    return {"local_steps": run.config.local_steps, "batch_size": run.config.batch_size}


def averaged(name: str, **how: Any) -> Callable[[study.Run], ffm.Algorithm]:
    """A method of local steps."""

    def make(run: study.Run) -> ffm.Algorithm:
        given = {**walk(run), **how}
        if name == "fedobd":  # blocks are leaves of the net, layers of MiniLM
            is_net = run.config.task == "image"
            given |= {"blocks": str} if is_net else {"stacked": r"encoder\.layer\."}
            given["dropped"] = run.config.dropped
        factory = getattr(algorithms, name)
        return factory(run.data.task, optax.sgd(run["rate"]), **given)

    return make


def by_gradient(name: str, kind: str) -> Callable[[study.Run], ffm.Algorithm]:
    """A method of gradients, with a channel of its own: "top_k" or "ternary"."""

    def make(run: study.Run) -> ffm.Algorithm:
        given: dict[str, Any] = walk(run)
        coarse = channels.ternary()
        if kind == "top_k":
            coarse = channels.top_k(run.config.kept)
        if name == "soteriafl":
            whole = given["local_steps"] * given["batch_size"]
            given = {"clip_norm": 1.0, "noise_multiplier": 0.0, "batch_size": whole}
        given["client_channel" if name == "fedlin" else "channel"] = coarse
        return getattr(algorithms, name)(run.data.task, run["rate"], **given)

    return make


def untrained(run: study.Run) -> dict[str, float]:
    """The model as it begins."""
    made = run.data
    found = ffm.evaluate(made.task, made.delta, made.backbone, made.test)
    return {"accuracy": float(found["accuracy"].mean())}


def trained(
    make: Callable[[study.Run], ffm.Algorithm],
    *,
    remembers: bool = False,
    longer: bool = False,
    shuffle: bool = False,
) -> Callable[[study.Run], dict[str, float]]:
    """An arm of one method.

    Args:
      make: the method.
      remembers: whether its uplink is top-k with error feedback.
      longer: whether it goes on for `more_rounds` times as many rounds.
      shuffle: whether training labels are permuted.
    """

    def arm(run: study.Run) -> dict[str, float]:
        config, made = run.config, run.data
        rounds = config.planned("rounds")
        cohort = min(config.planned("cohort"), len(made.clients))
        clients = made.clients
        if shuffle:
            clients = [shuffled_labels(one, run.seed) for one in clients]
        uplink = channels.error_feedback(channels.top_k(config.kept))
        run.simulate(
            make(run),
            ffm.Population.from_clients(clients),
            made.delta,
            rounds * (config.more_rounds if longer else 1),
            backbone=made.backbone,
            cohort_size=cohort,
            uplink=uplink if remembers else None,
            task=made.task,
            test=made.test,
            every=max(1, rounds // 30),
        )
        return scores(run, rounds, 8 * ffm.trees.size(made.delta), cohort)

    return arm


def scores(run: study.Run, rounds: int, plain: int, cohort: int) -> dict[str, float]:
    """Accuracy within budgets, and what the target costs, from the curve.

    Args:
      run: after its simulation.
      rounds: of FedAvg.
      plain: bytes of one client of FedAvg in a round, both ways.
      cohort: clients of a round.
    """
    config = run.config
    names = ("round", "eval_accuracy", "uplink_bytes", "downlink_bytes")
    columns = [np.array([row[name] for row in run.curve]) for name in names]
    number, accuracy, up, down = columns
    both, most = up + down, config.share * rounds * cohort * plain

    def within(cost: np.ndarray, budget: float) -> float:
        return float(accuracy[max(0, np.sum(cost <= budget) - 1)])

    def seconds(megabits: float, n: Any, bytes_each: Any) -> Any:
        steps = n * config.local_steps * config.step_seconds
        return steps + 8 * bytes_each / (1e6 * megabits)

    found = {"accuracy": within(both, most), "rounds": within(number, rounds)}
    costs = {"up": up / 1e6, "both": both / 1e6}
    for name, megabits in (("slow", 1.0), ("fast", 100.0)):
        took = seconds(megabits, number, both / cohort)
        whole = seconds(megabits, rounds, rounds * plain)
        found[name], costs[name] = within(took, config.share * whole), took
    if (reached := accuracy >= config.planned("target")).any():
        first = int(reached.argmax())
        found |= {f"to_{name}": float(cost[first]) for name, cost in costs.items()}
    return found


LOCAL, GRADIENT = {"rate": "grid"}, {"rate": "gradient_grid"}
FEDAVG = averaged("fedavg")
ARMS = (
    study.Arm("fedavg", trained(FEDAVG), "FedAvg", LOCAL),
    study.Arm("fedpaq", trained(averaged("fedpaq")), "FedPAQ, 4 bits", LOCAL),
    study.Arm("topk", trained(FEDAVG, remembers=True), "top-k, error feedback", LOCAL),
    study.Arm(
        "fedlin", trained(by_gradient("fedlin", "top_k")), "FedLin, top-k", LOCAL
    ),
    study.Arm("fedobd", trained(averaged("fedobd"), longer=True), "FedOBD", LOCAL),
    study.Arm("flasc", trained(averaged("flasc"), longer=True), "FLASC", LOCAL),
    study.Arm("docofl", trained(averaged("docofl")), "DoCoFL", LOCAL),
    study.Arm("diana", trained(by_gradient("diana", "ternary")), "DIANA", GRADIENT),
    study.Arm("ef21", trained(by_gradient("ef21", "top_k")), "EF21, top-k", GRADIENT),
    study.Arm(
        "soteriafl",
        trained(by_gradient("soteriafl", "ternary")),
        "SoteriaFL, no noise",
        GRADIENT,
    ),
)
CONTROLS = (
    study.Arm(
        "shuffled", trained(FEDAVG, shuffle=True), "shuffled labels", like="fedavg"
    ),
    study.Arm("untrained", untrained, "before training", like="fedavg"),
)
PERCENT = {"unit": "%", "scale": 100.0}
COST = {"highest": False, "digits": 2}
STUDY = study.Study(
    question="What does a byte buy, with each of the compressed methods?",
    expected=(
        "at equal rounds FedPAQ, DoCoFL and FedOBD within a point of FedAvg, top-k and "
        "FLASC a little below, DIANA, EF21 and SoteriaFL far below, as one step is less "
        "than four; at equal bytes FedOBD and FLASC first, as they compress both ways, "
        "then those that compress one way, FedAvg and FedLin last; at 1 Mbit/s the order "
        "of bytes for MiniLM's adapters, and that of rounds else"
    ),
    config=Config,
    data=data,
    primary=dataclasses.replace(study.ACCURACY, label="accuracy at equal bytes"),
    scores=(
        study.Score("rounds", "at equal rounds", **PERCENT),
        study.Score("slow", "at equal seconds, 1 Mbit/s", **PERCENT),
        study.Score("fast", "at equal seconds, 100 Mbit/s", **PERCENT),
        study.Score("to_up", "to the target, up", "MB", **COST),
        study.Score("to_both", "to the target, in all", "MB", **COST),
        study.Score("to_slow", "to the target, 1 Mbit/s", "s", **COST),
        study.Score("to_fast", "to the target, 100 Mbit/s", "s", **COST),
    ),
    arms=(*ARMS, *CONTROLS),
    comparisons=[*study.against("fedavg", ARMS), ("ef21", "diana")],
    controls=(
        study.Control("shuffled", "fedavg"),
        study.Control("untrained", "fedavg"),
    ),
)
