"""What does federated LoRA bring, and what does compression cost?

Federated LoRA of a small encoder is compared with a head alone, with clients alone and
with one place that has all data. Rated sentences of four domains (tweets, Amazon
reviews, film reviews, editorials), label = sign of the mean rating. Whole documents are
split off for the central test, the rest is dealt to clients of one domain each; a share
of every client's own sentences tests it, and eight clients never train. MiniLM, LoRA on
query and value, a linear head on the mean of the tokens.

Both ways are compressed. Up: error feedback around the largest tenth of the entries in
4-bit codes. Down: 8-bit stochastic codes in buckets, without error feedback: the
message is the parameters themselves and receivers do not add messages up, so that
error feedback would only add the last message's error to this one's. `anchored` bills
an anchor to each of ten receivers drawn from 64, who seldom hold it: at 8 bits in all
it leaves 4 for each part and loses more. The error of plain codes is unbiased and never
reaches the server's own parameters, which are exact.

All arms see as many training sentences, repetitions counted; the head sees features
that are computed once. Scores: accuracy on the central test, where a client that is
alone judges a random share of it; on the clients' own sentences, with the worst tenth
of the clients; on clients that never train; and how many times fewer bytes travel than
without channels, up and both ways. The default's learning rates were chosen beforehand
on seed 1000; `--full` chooses them anew.

Controls: federated LoRA and the head, each on shuffled labels; the untrained model.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import channels, models, peft, study, tasks, trees
from fedjax_fm.algorithms import local_only
from fedjax_fm.callbacks.looks import worst_decile
from fedjax_fm.experiments.shared.features import standard_features
from fedjax_fm.experiments.shared.sentences import (
    Arrays,
    of_split,
    partition,
    sentences,
    shuffled_labels,
)
from fedjax_fm.population.splits import split_by_group, split_clients, split_within
from fedjax_fm.study.judged import joined, judged

GRID = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
HOW = {"batch_size": 16}  # of evaluations: a client has few sentences


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run quickstart`; change one by `--set name=value`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 40  # tokens; longer sentences are cut
    rank: int = 8
    targets: str = r"query|value"
    partition: Literal["domain", "dirichlet", "iid"] = "domain"
    alpha: float = 0.3  # of the Dirichlet partition over the label
    clients: int = 64  # that train; a quarter of them while tuning
    held_out_clients: int = 8  # that never train
    most_own: int = 8  # test sentences of a client
    most_test: int = 768  # of the central test
    cohort: int = 10
    rounds: int = 12
    tuning_rounds: int = 24
    local_steps: int = 4
    batch_size: int = 8
    centralised_batch: int = 32
    top_k: float = 0.1  # share of the entries that goes up
    bits_up: int = 4
    bits_down: int = 8
    head_examples: int = 48  # training sentences of a client that the head sees
    # Adam's learning rates; more than one are a grid.
    federated_rates: tuple[float, ...] = (1e-2,)
    uncompressed_rates: tuple[float, ...] = (5e-3,)
    local_rates: tuple[float, ...] = (5e-3,)
    centralised_rates: tuple[float, ...] = (2e-3,)
    head_rates: tuple[float, ...] = (2e-3,)
    every: int = 3  # rounds between evaluations on a part of the central test
    looked_at: int = 256  # sentences of that part
    seeds: tuple[int, ...] = (0,)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            max_length=24,
            clients=16,
            held_out_clients=4,
            most_own=4,
            most_test=64,
            cohort=4,
            rounds=4,
            tuning_rounds=1,
            local_steps=2,
            head_examples=16,
            looked_at=32,
        )

    def full(self) -> "Config":
        """The study: longer, all sentences, one grid of learning rates, three seeds.

        Under two hours.
        """
        names = [field.name for field in dataclasses.fields(self)]
        rates = {name: GRID for name in names if name.endswith("_rates")}
        every = {"most_own": 10**6, "most_test": 10**6, "head_examples": 10**6}
        return dataclasses.replace(
            self, **rates, **every, rounds=60, every=6, seeds=(0, 1, 2)
        )

    @property
    def examples(self) -> int:
        """Training sentences that an arm sees, repetitions counted."""
        return self.rounds * self.cohort * self.local_steps * self.batch_size


class Data(NamedTuple):
    """Clients' sentences, and the model that reads them."""

    whole: Any  # the classifier before LoRA
    adapted: peft.Adapted
    task: ffm.Task  # one object, so that what scores it is compiled once a seed
    train: list[Arrays]  # of each training client
    own: list[Arrays]  # the same clients' test sentences
    held_out: list[Arrays]  # of clients that never train
    test: Arrays  # of other documents


def data(config: Config, seed: int, split: str) -> Data:
    """Splits off documents for the test, and deals the others to clients."""
    found = sentences(config.model, config.max_length)
    rows = of_split(found, split, 0.25)
    shares = {"clients": 0.85, "test": 0.15}
    documents = split_by_group(found.document[rows], shares, seed, found.domain[rows])
    share = 1 if split == "final" else 4
    counts = {
        "train": config.clients // share,
        "held_out": max(1, config.held_out_clients // share),
    }
    clients = partition(
        found,
        rows[documents["clients"]],
        n=sum(counts.values()),
        seed=seed,
        how=config.partition,
        alpha=config.alpha,
    )
    roles = split_clients(len(clients), counts, seed)
    halves = [split_within(clients[k], 0.8, seed + int(k)) for k in roles["train"]]
    random = np.random.default_rng(seed)

    def some(rows: np.ndarray, most: int) -> Arrays:
        return found.take(random.permutation(rows)[:most])

    whole = models.from_pretrained(
        config.model, num_labels=2, pooling="mean", seed=seed
    )
    method = peft.lora(config.rank, 2.0 * config.rank, targets=config.targets)
    adapted = peft.apply(whole, method, jax.random.key(seed))
    return Data(
        whole=whole,
        adapted=adapted,
        task=tasks.classification(adapted),
        train=[found.take(train) for train, _ in halves],
        own=[some(test, config.most_own) for _, test in halves],
        held_out=[some(clients[k], 4 * config.most_own) for k in roles["held_out"]],
        test=some(rows[documents["test"]], config.most_test),
    )


def in_features(run: study.Run) -> Data:
    """The same clients with features of the frozen model, and a linear head on them."""

    def make() -> Data:
        data, most = run.data, run.config.head_examples
        some = [
            {name: array[:most] for name, array in client.items()}
            for client in data.train
        ]
        parts = (some, data.own, data.held_out, [data.test])
        train, own, held_out, (test,) = standard_features(data.whole, *parts)
        width, random = test["x"].shape[1], nnx.Rngs(run.seed)
        linear = nnx.Linear(width, 2, rngs=random)
        head = peft.apply(linear, peft.full())
        return Data(
            whole=data.whole,
            adapted=head,
            task=tasks.classification(head),
            train=train,
            own=own,
            held_out=held_out,
            test=test,
        )

    return run.once("features", make)


def shuffled(data: Data, seed: int) -> Data:
    """The same data with permuted labels."""
    return data._replace(train=[shuffled_labels(client, seed) for client in data.train])


def wires(config: Config) -> dict[str, Any]:
    """The channels of the compressed arm; the module says why these."""
    largest = channels.top_k(config.top_k)
    codes = channels.quantize(config.bits_up, norm="max")
    up = channels.error_feedback(channels.chain(largest, codes))
    return {"uplink": up, "downlink": channels.quantize(config.bits_down, norm="max")}


def federated(
    run: study.Run, compressed: bool = True, shuffle: bool = False
) -> dict[str, float]:
    """LoRA by FedAvg, with or without channels."""
    config, data = run.config, shuffled(run.data, run.seed) if shuffle else run.data
    optimizer = optax.adam(run["learning_rate"])
    algorithm = ffm.fedavg(
        data.task,
        optimizer,
        local_steps=config.local_steps,
        batch_size=config.batch_size,
    )
    found = simulate(
        run,
        data,
        algorithm,
        train=data.train,
        rounds=rounds_of(run),
        cohort_size=min(config.cohort, len(data.train)),
        **(wires(config) if compressed else {}),
    )
    up, down = found.simulator.bytes_per_client(found.state)
    whole = trees.nbytes(data.adapted.delta)
    return {
        **scores(run, data, found),
        "fewer_up": whole / up,
        "fewer_both": 2 * whole / (up + down),
    }


def centralised(
    run: study.Run, head: bool = False, shuffle: bool = False
) -> dict[str, float]:
    """One place has all training sentences; a round is a step of Adam."""
    config, data = run.config, in_features(run) if head else run.data
    data = shuffled(data, run.seed) if shuffle else data
    algorithm = ffm.fedavg(
        data.task,
        optax.sgd(1.0),
        optax.adam(run["learning_rate"]),
        local_steps=1,
        batch_size=config.centralised_batch,
    )
    whole = rounds_of(run) / config.rounds * config.examples
    steps = max(1, round(whole / config.centralised_batch))
    found = simulate(
        run,
        data,
        algorithm,
        train=[joined(data.train)],
        rounds=steps,
        cohort_size=1,
        every=max(1, steps // (config.rounds // config.every)),
        travels=False,
    )
    return scores(run, data, found)


def alone(run: study.Run) -> dict[str, float]:
    """Every client alone, for as many rounds as one takes part in on average."""
    config, data, n = run.config, run.data, len(run.data.train)
    algorithm = local_only(
        data.task,
        optax.adam(run["learning_rate"]),
        local_steps=config.local_steps,
        batch_size=config.batch_size,
    )
    share = min(config.cohort / n, 1)
    found = simulate(
        run,
        data,
        algorithm,
        train=data.train,
        rounds=max(1, round(rounds_of(run) * share)),
        cohort_size=n,
        test=None,
    )
    return scores(run, data, found)


def untrained(run: study.Run) -> dict[str, float]:
    """The model that all arms start from."""
    data = run.data
    algorithm = ffm.fedavg(data.task, optax.sgd(0.0), local_steps=1, batch_size=1)
    found = simulate(
        run, data, algorithm, train=data.train, rounds=0, cohort_size=1, test=None
    )
    return scores(run, data, found)


def rounds_of(run: study.Run) -> int:
    """Rounds of the run, which may be fewer while tuning."""
    rounds = run.config.rounds
    return min(run.config.tuning_rounds, rounds) if run.is_tuning else rounds


def simulate(
    run: study.Run,
    data: Data,
    algorithm: Any,
    *,
    train: list[Arrays],
    rounds: int,
    cohort_size: int,
    **how: Any,
) -> study.Simulated:
    """A run over these clients that is evaluated on a part of the central test."""
    looks = {name: array[: run.config.looked_at] for name, array in data.test.items()}
    more = {"every": run.config.every, "test": looks, **HOW, **how}
    return run.simulate(
        algorithm,
        ffm.Population.from_clients(train),
        data.adapted.delta,
        rounds,
        backbone=data.adapted.backbone,
        cohort_size=cohort_size,
        task=data.task,
        keep=rounds > 0,
        **more,
    )


def scores(run: study.Run, data: Data, found: study.Simulated) -> dict[str, float]:
    """Accuracy on all test sets; that of each client is shown in the report."""
    task, name = data.task, "accuracy"
    # The test's order is random, so that a client that is alone judges a random share.
    rows = np.arange(len(data.test["label"]))
    dealt = [
        {column: array[part] for column, array in data.test.items()}
        for part in np.array_split(rows, len(data.train))
        if len(part)
    ]
    correct, counts = judged(found, task, dealt, name, **HOW)
    tests = ffm.Population.from_clients(data.own)
    own = run.score_clients(found, task, tests, name, **HOW)
    held_out, _ = judged(found, task, data.held_out, name, **HOW)
    return {
        "accuracy": float(np.average(correct, weights=counts)),
        "own": float(np.nanmean(own)),
        "worst": worst_decile(own, "accuracy"),
        "held_out": float(held_out.mean()),
    }


def tuned(name: str, run: Any, label: str, **how: Any) -> study.Arm:
    """An arm whose learning rates are a setting."""
    rates = {"learning_rate": f"{name}_rates"}
    return study.Arm(name, functools.partial(run, **how), label, rates)


ARMS = (
    tuned("federated", federated, "federated LoRA, compressed both ways"),
    tuned("uncompressed", federated, "federated LoRA, uncompressed", compressed=False),
    tuned("centralised", centralised, "centralised LoRA, equal samples"),
    tuned("head", centralised, "trained head on frozen features", head=True),
    tuned("local", alone, "local only, each client alone"),
)
CONTROLS = (
    study.Arm(
        "shuffled",
        functools.partial(federated, shuffle=True),
        "federated, shuffled labels",
        like="federated",
    ),
    study.Arm(
        "head_shuffled",
        functools.partial(centralised, head=True, shuffle=True),
        "head, shuffled",
        like="head",
    ),
    study.Arm("untrained", untrained),
)

STUDY = study.Study(
    question="What does federated LoRA of a small encoder bring over a head alone and "
    "over clients alone, and what does compression cost?",
    expected="centralised and uncompressed first and level, compressed just below, then "
    "the head, clients alone last",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*ARMS, *CONTROLS),
    comparisons=[("federated", arm.name) for arm in ARMS[1:]],
    controls=(
        study.Control("shuffled", "federated"),
        study.Control("head_shuffled", "head"),
        study.Control("untrained", "federated"),
    ),
    scores=(
        study.Score("own", "clients' own sentences", "%", 100.0),
        study.Score("worst", "worst tenth of the clients", "%", 100.0),
        study.Score("held_out", "held-out clients", "%", 100.0),
        study.Score("fewer_up", "times fewer bytes up"),
        study.Score("fewer_both", "times fewer bytes both ways"),
    ),
)
