"""Which part of a model is worth training under client-level privacy?

The noise of differential privacy grows with what is trained. DP-FedAvg at the level of
clients: Poisson cohorts and independent noise, accounted by dp-accounting for just that
sampler; delta is 1e-5, one client more or less. Rated sentences of four domains, two
sentences of one domain a client: 6,480 clients, 345 of them a round on average, 15
rounds of one SGD step at the clients and Adam at the server. MiniLM, whose first five
layers are frozen for every arm and computed once; "full" is all of the last layer.
Every arm trains the head too.

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
    public_clients: int = 256  # whose first updates are used before the first round
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
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            share=0.05,
            clients=120,
            public_clients=16,
            cohort=20,
            rounds=2,
            grid=(4e-3,),
            seeds=(0, 1),
        )


class Data(NamedTuple):
    """Clients, test and public sentences, with what the last layer reads."""

    model: Tail
    clients: ffm.Population
    test: Arrays
    public: Arrays  # sentences of public clients, one client after the other


def data(config: Config, seed: int, split: str) -> Data:
    """Deals the split's documents."""
    found = pool(config.model, config.max_length, config.share)
    clients, test = deal(found, config, seed, split)
    public, _ = deal(found, config, 0, "tuning")
    arrays = found.take(clients.ravel())
    offsets = np.arange(len(clients) + 1) * config.sentences
    return Data(
        model=Tail(whole_model(config.model, seed), 1),
        clients=ffm.Population.from_arrays(arrays, offsets),
        test=found.take(test),
        public=found.take(public[: config.public_clients].ravel()),
    )


@functools.lru_cache(maxsize=1)
def pool(model: str, max_length: int, share: float) -> Sentences:
    """Sentences as hidden states of the frozen layers.

    Args:
      model: its name.
      max_length: tokens of a sentence.
      share: of all sentences.
    """
    table = sentences(model, max_length)
    n = len(table.domain)
    order = np.random.default_rng(0).permutation(n)
    rows = order[: round(share * n)]
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
    """Deals sentences to clients of one domain each, and other documents to the test.

    All seeds have the same number of clients, so that their privacy is the same, and
    they share their programs.

    Args:
      found: from `pool`.
      config: of the study.
      seed: of the dealing.
      split: "tuning" or "final".

    Returns:
      (row numbers of clients [clients, sentences], row numbers of the test).

    Raises:
      ValueError: there are too few sentences for a final split.
    """
    rows = of_split(found, split, config.public_share)
    random = np.random.default_rng(seed)
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
    """What trains one of `PARTS`; the head is always trained, too."""
    config = run.config
    adapters: dict[str, Any] = {
        "rank": config.rank,
        "alpha": 2.0 * config.rank,
        "targets": config.targets,
    }
    if part == "lora":
        return peft.lora(**adapters)
    if part == "ffa_lora":
        return peft.lora(**adapters, freeze_a=True)
    if part == "fed_sb":
        updates = run.once("directions", lambda: directions(run))
        return lora_sb(**adapters, updates=updates)
    return {"full": peft.full, "bitfit": peft.bitfit, "head": peft.head}[part]()


def directions(run: study.Run) -> Any:
    """The directions of LoRA-SB: a first full step on the public sentences."""
    public = run.data.public

    def loss(model: Tail) -> jax.Array:
        scores = model(public["hidden"], public["attention_mask"])
        nats = optax.softmax_cross_entropy_with_integer_labels(scores, public["label"])
        return nats.mean()

    gradients = first_gradients(run.data.model, loss, targets=run.config.targets)
    return first_updates(gradients, run.config.first_rate)


def median_norm(
    task: ffm.Task, adapted: peft.Adapted, public: Arrays, sentences: int
) -> float:
    """The median norm of the public clients' first updates.

    With one step of rate 1 an update is a gradient.

    Args:
      task: of the adapted model.
      adapted: the model.
      public: sentences of public clients, one client after the other.
      sentences: of a client.
    """

    def mean(delta: Tree, backbone: Tree, batch: Arrays) -> jax.Array:
        each, _ = task.loss(delta, backbone, batch, None)
        return each.mean()

    @jax.jit
    def norms(delta: Tree, backbone: Tree, clients: Arrays) -> jax.Array:
        def norm(batch: Arrays) -> jax.Array:
            gradient = jax.grad(mean)(delta, backbone, batch)
            return optax.tree.norm(gradient)

        return jax.lax.map(norm, clients)

    clients = {
        name: array.reshape(-1, sentences, *array.shape[1:])
        for name, array in public.items()
    }
    found = norms(adapted.delta, adapted.backbone, clients)
    return float(np.median(found))


@functools.cache
def multiplier(
    epsilon: float, n_clients: int, cohort: int, rounds: int, delta: float
) -> Any:
    """The noise multiplier that spends epsilon, with what it is accounted for.

    Args:
      epsilon: of all rounds.
      n_clients: in the population.
      cohort: clients of a round, on average.
      rounds: of the run.
      delta: of the guarantee.
    """
    sampler = samplers.poisson(n_clients, cohort / n_clients)
    return privacy.multiplier_for(
        epsilon, sampler, noise=privacy.independent(), rounds=rounds, delta=delta
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
                epsilon,
                config.clients,
                config.cohort,
                rounds=config.rounds,
                delta=config.delta,
            )
        # The rate is part of the state, so that the whole grid is one program.
        adam = optax.inject_hyperparams(optax.adam)(learning_rate=run["learning_rate"])
        algorithm = dp_fedavg(
            task,
            optax.sgd(1.0),
            adam,
            noise=privacy.independent(),
            clip_norm=clip,
            # On public documents no privacy is spent, and the noise is a plain number.
            noise_multiplier=float(noise) if run.is_tuning else noise,
            local_steps=1,
            batch_size=config.sentences,
        )
        arrays = found.clients.arrays
        if shuffle:
            arrays = shuffled_labels(arrays, run.seed)
        clients = ffm.Population.from_arrays(arrays, found.clients.offsets)
        n = clients.n_clients
        done = run.simulate(
            algorithm,
            clients,
            adapted.delta,
            config.rounds,
            backbone=adapted.backbone,
            cohort_size=config.cohort,
            sampler=samplers.poisson(n, config.cohort / n),
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
    task = tasks.classification(adapted)
    scores = ffm.evaluate(task, adapted.delta, adapted.backbone, run.data.test)
    return {"accuracy": means(scores)["accuracy"]}


def larger_class(run: study.Run) -> dict[str, float]:
    """One answer for all sentences."""
    share = float(run.data.test["label"].mean())
    return {"accuracy": max(share, 1 - share)}


def name_of(part: str, epsilon: float | None) -> str:
    """The name of an arm."""
    return f"{part}_noiseless" if epsilon is None else f"{part}_eps{epsilon:g}"


def arm_of(part: str, epsilon: float | None) -> study.Arm:
    """An arm; each part is tuned once with noise, and once without."""
    noise = "no noise" if epsilon is None else f"epsilon {epsilon:g}"
    label, name = f"{PARTS[part]}, {noise}", name_of(part, epsilon)
    run = private(part, epsilon)
    if epsilon in (TUNED_AT, None):
        return study.Arm(name, run, label, {"learning_rate": "grid"})
    return study.Arm(name, run, label, like=name_of(part, TUNED_AT))


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
