"""Which part of a model is worth training, when the noise of differential privacy grows
with what is trained?

DP-FedAvg at the level of clients: Poisson cohorts and independent noise, accounted by
dp-accounting for just that sampler; delta is 1e-5, one client more or less. Rated
sentences of four domains, two sentences of one domain a client: 6,480 clients, 345 of
them a round on average, 15 rounds of one SGD step at the clients and Adam at the
server. MiniLM, whose first five layers are frozen for every arm and computed once;
"full" is all of the last layer. Every arm trains the head too.

30 % of the documents are public. On them every arm chooses Adam's rate, once at epsilon
0.5 for all arms with noise, with as much noise as a run of the study has, and once
without. 256 public clients give each arm its clip norm, the median of their first
updates, and Fed-SB its directions and its start, from the signs of gradients; sending
these is not in its bytes.

Score: accuracy on sentences of other documents. Controls: LoRA on shuffled labels, the
untrained start, the larger class.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import models, peft, privacy, study, tasks, trees
from fedjax_fm.algorithms.dp_fedavg import dp_fedavg
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.shared.sentences import (
    Arrays,
    Sentences,
    of_split,
    sentences,
    shuffled_labels,
)
from fedjax_fm.experiments.shared.tail import Tail, hidden_states
from fedjax_fm.peft.lora_sb import first_gradients, first_updates, lora_sb
from fedjax_fm.population import samplers
from fedjax_fm.population.splits import split_by_group
from fedjax_fm.types import Tree

PARTS = {
    "full": "all of the last layer",
    "lora": "LoRA",
    "ffa_lora": "FFA-LoRA",
    "fed_sb": "Fed-SB",
    "bitfit": "BitFit",
    "head": "head alone",
}
EPSILONS, TUNED_AT = (0.1, 0.5, 2.0, None), 0.5  # None: no noise


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 16
    share: float = 1.0  # of all sentences
    sentences: int = 2  # of a client
    clients: int = 6480
    public_share: float = 0.3  # of the documents
    public_clients: int = (
        256  # whose first updates are looked at before the first round
    )
    test_share: float = 0.2
    cohort: int = 345  # planned; the sampler's rate is cohort / clients
    rounds: int = 15
    rank: int = 8
    targets: str = r"^layer\.(intermediate|output)\.dense$"
    first_rate: float = 1e-3  # of the full step that Fed-SB starts from
    delta: float = 1e-5
    grid: tuple[float, ...] = (2.5e-4, 1e-3, 4e-3, 16e-3, 64e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """Does it work?"""
        small = {
            "share": 0.05,
            "clients": 120,
            "public_clients": 16,
            "cohort": 20,
            "rounds": 2,
        }
        return dataclasses.replace(self, **small, grid=(4e-3,), seeds=(0, 1))


class Data(NamedTuple):
    """Clients, what they are judged on, and what everybody knows.

    Arrays hold what the last layer sees.
    """

    model: Tail
    clients: ffm.Population
    test: Arrays
    public: Arrays  # sentences of public clients, one client after the other


def data(config: Config, seed: int, split: str) -> Data:
    """Deals the split's documents."""
    found = pool(config.model, config.max_length, config.share)
    clients, test = deal(found, config, seed, split)
    public = deal(found, config, 0, "tuning")[0][: config.public_clients]
    offsets = np.arange(len(clients) + 1) * config.sentences
    return Data(
        model=Tail(whole_model(config.model, seed), 1),
        clients=ffm.Population.from_arrays(found.take(clients.ravel()), offsets),
        test=found.take(test),
        public=found.take(public.ravel()),
    )


@functools.lru_cache(maxsize=1)
def pool(model: str, max_length: int, share: float) -> Sentences:
    """Sentences, as hidden states that the frozen layers gave."""
    table = sentences(model, max_length)
    rows = np.random.default_rng(0).permutation(len(table.domain))[
        : round(share * len(table.domain))
    ]
    tokens = table.take(rows)
    hidden = hidden_states(whole_model(model, 0), tokens, 1)
    arrays = {
        "hidden": hidden,
        "attention_mask": tokens["attention_mask"],
        "label": tokens["label"],
    }
    return Sentences(arrays, table.domain[rows], table.document[rows])


def whole_model(name: str, seed: int) -> Any:
    """The classifier with a head of random values."""
    return models.from_pretrained(name, num_labels=2, pooling="mean", seed=seed)


def deal(
    found: Sentences, config: Config, seed: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [clients, sentences], test rows).

    Clients of one domain each, the test of other documents.

    All seeds have as many clients, so that they are accounted for alike, and share their programs.
    """
    rows, random = (
        of_split(found, split, config.public_share),
        np.random.default_rng(seed),
    )
    shares = {"train": 1 - config.test_share, "test": config.test_share}
    halves = split_by_group(found.document[rows], shares, seed, found.domain[rows])
    train, clients = rows[halves["train"]], []
    for name in np.unique(found.domain):
        mine = random.permutation(train[found.domain[train] == name])
        whole = len(mine) // config.sentences * config.sentences
        clients.append(mine[:whole].reshape(-1, config.sentences))
    clients = random.permutation(np.concatenate(clients))
    if split == "final" and len(clients) < config.clients:
        raise ValueError(
            f"{len(clients)} clients of {config.sentences} sentences, "
            f"clients={config.clients} are asked for"
        )
    return clients[: config.clients], rows[halves["test"]]


def method(part: str, run: study.Run) -> peft.Method:
    """What is trained; the head is always with it."""
    config = run.config
    adapters: dict[str, Any] = {
        "rank": config.rank,
        "alpha": 2.0 * config.rank,
        "targets": config.targets,
    }
    makers = {
        "full": peft.full,
        "lora": lambda: peft.lora(**adapters),
        "ffa_lora": lambda: peft.lora(**adapters, freeze_a=True),
        "fed_sb": lambda: lora_sb(
            **adapters, updates=run.once("directions", lambda: directions(run))
        ),
        "bitfit": peft.bitfit,
        "head": peft.head,
    }
    return makers[part]()


def directions(run: study.Run) -> Any:
    """Of LoRA-SB: a first full step on the public sentences."""
    public = run.data.public

    def loss(model: Tail) -> jax.Array:
        scores = model(public["hidden"], public["attention_mask"])
        return optax.softmax_cross_entropy_with_integer_labels(
            scores, public["label"]
        ).mean()

    gradients = first_gradients(run.data.model, loss, targets=run.config.targets)
    return first_updates(gradients, run.config.first_rate)


def median_norm(
    task: ffm.Task, adapted: peft.Adapted, public: Arrays, sentences: int
) -> float:
    """Of the public clients' first updates: with one step of rate 1 these are gradients."""

    def mean(delta: Tree, backbone: Tree, batch: Arrays) -> jax.Array:
        return task.loss(delta, backbone, batch, None)[0].mean()

    @jax.jit
    def norms(delta: Tree, backbone: Tree, clients: Arrays) -> jax.Array:
        def norm(batch: Arrays) -> jax.Array:
            return optax.tree.norm(jax.grad(mean)(delta, backbone, batch))

        return jax.lax.map(norm, clients)

    clients = {
        name: array.reshape(-1, sentences, *array.shape[1:])
        for name, array in public.items()
    }
    return float(np.median(norms(adapted.delta, adapted.backbone, clients)))


@functools.cache
def multiplier(
    epsilon: float, n_clients: int, cohort: int, rounds: int, delta: float
) -> Any:
    """Noise that spends epsilon, and what it is accounted for."""
    sampler = samplers.poisson(n_clients, cohort / n_clients)
    return privacy.multiplier_for(
        epsilon, sampler, privacy.independent(), rounds, delta
    )


def private(part: str, epsilon: float | None, shuffle: bool = False) -> Any:
    """An arm: one part of the model, trained at one epsilon."""

    def arm(run: study.Run) -> dict[str, float]:
        config, found = run.config, run.data
        adapted = peft.apply(found.model, method(part, run), jax.random.key(run.seed))
        task = tasks.classification(adapted)
        clip = run.once(
            ("clip", part),
            lambda: median_norm(task, adapted, found.public, config.sentences),
        )
        noise = 0.0
        if epsilon is not None:
            noise = multiplier(
                epsilon, config.clients, config.cohort, config.rounds, config.delta
            )
        # A rate that is part of the state leaves the program as it is: one compile for
        # the whole grid.
        adam = optax.inject_hyperparams(optax.adam)(learning_rate=run["learning_rate"])
        algorithm = dp_fedavg(
            task,
            optax.sgd(1.0),
            adam,
            noise=privacy.independent(),
            clip_norm=clip,
            # Nothing is accounted for on public documents: there the noise is a plain number.
            noise_multiplier=float(noise) if run.is_tuning else noise,
            local_steps=1,
            batch_size=config.sentences,
        )
        arrays, offsets = found.clients.arrays, found.clients.offsets
        clients = ffm.Population.from_arrays(
            shuffled_labels(arrays, run.seed) if shuffle else arrays, offsets
        )
        done = run.simulate(
            algorithm,
            clients,
            adapted.delta,
            config.rounds,
            backbone=adapted.backbone,
            cohort_size=config.cohort,
            sampler=samplers.poisson(
                clients.n_clients, config.cohort / clients.n_clients
            ),
            task=task,
            test=found.test,
            every=config.rounds if run.is_tuning else 5,
        )
        return {
            "accuracy": done.scores["accuracy"],
            "numbers": trees.size(adapted.delta),
            "noise": float(noise),
        }

    return arm


def untrained(run: study.Run) -> dict[str, float]:
    """The random head."""
    adapted = peft.apply(run.data.model, peft.head())
    scores = ffm.evaluate(
        tasks.classification(adapted), adapted.delta, adapted.backbone, run.data.test
    )
    return {"accuracy": means(scores)["accuracy"]}


def larger_class(run: study.Run) -> dict[str, float]:
    """One answer for all sentences."""
    share = float(run.data.test["label"].mean())
    return {"accuracy": max(share, 1 - share)}


def name_of(part: str, epsilon: float | None) -> str:
    """Of an arm."""
    return f"{part}_noiseless" if epsilon is None else f"{part}_eps{epsilon:g}"


def arm_of(part: str, epsilon: float | None) -> study.Arm:
    """Tuned once with noise, and once without."""
    label = (
        f"{PARTS[part]}, {'no noise' if epsilon is None else f'epsilon {epsilon:g}'}"
    )
    if epsilon in (TUNED_AT, None):
        return study.Arm(
            name_of(part, epsilon),
            private(part, epsilon),
            label,
            {"learning_rate": "grid"},
        )
    return study.Arm(
        name_of(part, epsilon),
        private(part, epsilon),
        label,
        like=name_of(part, TUNED_AT),
    )


CONTROLS = (
    study.Arm(
        "shuffled",
        private("lora", None, shuffle=True),
        "LoRA, shuffled labels",
        like="lora_noiseless",
    ),
    study.Arm("untrained", untrained, "random head, untrained"),
    study.Arm("larger_class", larger_class, "the larger class"),
)

STUDY = study.Study(
    question="Which part of a model is worth training, when the noise of differential "
    "privacy grows with what is trained?",
    expected="without noise all of the last layer first and the head alone last; at "
    "epsilon 0.1 the other way round, Fed-SB above LoRA and FFA-LoRA",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(
        *(arm_of(part, epsilon) for epsilon in EPSILONS for part in PARTS),
        *CONTROLS,
    ),
    comparisons=[
        (name_of(part, epsilon), name_of("full", epsilon))
        for epsilon in EPSILONS
        for part in PARTS
        if part != "full"
    ],
    controls=tuple(
        study.Control(control.name, "lora_noiseless") for control in CONTROLS
    ),
    scores=(
        study.Score("numbers", "trained numbers", unit="thousand", scale=1e-3),
        study.Score("noise", "noise multiplier", highest=False, digits=2),
    ),
)
