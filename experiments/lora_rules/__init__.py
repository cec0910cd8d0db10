"""Which LoRA aggregation rule gets furthest on a budget of bytes, with clients of rank 2 to 16?

Eight clients, two of each of four domains of rated sentences, 80 training and 100 test sentences of other documents each; which
client has which rank is drawn. MiniLM with a head frozen at random values, the same for all arms of a seed, so that all that is
learned goes through the adapters on the last layer's feed-forward matrices; what the five layers before give is computed once.
All clients every round, 4 Adam steps of 8 sentences. The budget is what FedIT sends in ten rounds, up and down.

Score: accuracy on the clients' own test sentences, with the client's own model where a rule has one. HetLoRA runs whole
(lambda 0.01, gamma 0.99). Fed-SB alone takes its directions and its start from the signs of gradients on 512 labelled tuning
sentences, and pays for sending them.

Controls: FedIT on shuffled labels; the random head, untrained; and the head alone, trained: if it is not worse than FedIT, the
task does not need adapters, and that a rule gets this far says little.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import models, peft, study, tasks, trees
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.experiments.shared.sentences import Arrays, deal, of_split, sentences, shuffled_labels
from fedjax_fm.experiments.shared.tail import Tail, hidden_states
from fedjax_fm.peft.lora_sb import first_gradients, first_updates, lora_sb


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    targets: str = r"^layer\.(intermediate|output)\.dense$"
    max_length: int = 20
    ranks: tuple[int, ...] = (2, 4, 8, 16, 2, 4, 8, 16)
    train: int = 80  # sentences of a client
    test: int = 100
    public: int = 512  # labelled tuning sentences that Fed-SB sees
    budget_rounds: int = 10  # of FedIT, whose bytes are the budget
    tuning_rounds: int = 5  # likewise, for the choice of learning rates
    most_rounds: int = 30
    grid: tuple[float, ...] = (4e-3, 16e-3, 64e-3, 256e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)

    def smoke(self) -> "Config":
        """Does it work?"""
        small = {"train": 16, "test": 10, "public": 32, "grid": (16e-3,), "seeds": (0, 1)}
        return dataclasses.replace(self, **small, budget_rounds=2, tuning_rounds=1, most_rounds=3)


class Data(NamedTuple):
    """Clients, in the order of the ranks; their arrays hold what the last layer sees."""

    model: Tail
    train: list[Arrays]
    test: list[Arrays]
    public: Arrays


def data(config: Config, seed: int, split: str) -> Data:
    """Deals the split's documents to clients."""
    found = sentences(config.model, config.max_length)
    clients = deal(
        found,
        of_split(found, split, 0.4),
        seed,
        train=config.train,
        test=config.test,
        per_domain=len(config.ranks) // 4,
    )
    order = np.random.default_rng(seed).permutation(len(clients))
    whole = models.from_pretrained(config.model, num_labels=2, pooling="mean", seed=seed)

    def seen(rows: np.ndarray) -> Arrays:
        arrays = found.take(rows)
        hidden = hidden_states(whole, arrays, 1)
        return {"hidden": hidden, "attention_mask": arrays["attention_mask"], "label": arrays["label"]}

    public = np.random.default_rng(0).permutation(of_split(found, "tuning", 0.4))[: config.public]
    train, test = ([seen(getattr(clients[k], part)) for k in order] for part in ("train", "test"))
    return Data(Tail(whole, 1), train, test, seen(public))


def budget(run: study.Run) -> int:
    """What FedIT sends, up and down, in the rounds of the budget."""
    rounds = run.config.tuning_rounds if run.is_tuning else run.config.budget_rounds
    adapted = peft.apply(run.data.model, method(run.config))
    floats = lambda rank: sum(leaf.size * rank // max(run.config.ranks) for leaf in jax.tree.leaves(adapted.delta))
    return rounds * sum(2 * 4 * floats(rank) for rank in run.config.ranks)


def method(config: Config) -> peft.Method:
    """LoRA of the largest rank, without a head."""
    return peft.lora(max(config.ranks), 2.0 * max(config.ranks), targets=config.targets, modules_to_save=())


def directions(run: study.Run) -> peft.Method:
    """LoRA-SB: frozen directions from labelled public sentences, which every client is sent at its rank."""
    config, public = run.config, run.data.public
    rank = max(config.ranks)

    def loss(model):
        scores = model(public["hidden"], public["attention_mask"])
        return optax.softmax_cross_entropy_with_integer_labels(scores, public["label"]).mean()

    updates = first_updates(first_gradients(run.data.model, loss, targets=config.targets), 1e-3)
    return lora_sb(rank, 2.0 * rank, targets=config.targets, modules_to_save=(), updates=updates)


def adapters(rule: Any, own: Any = method, shuffle: bool = False, **how: Any) -> Any:
    """An arm: one rule, until the next round would exceed the budget."""

    def arm(run: study.Run) -> dict[str, float]:
        config = run.config
        chosen = own(run) if own is directions else own(config)
        adapted = peft.apply(run.data.model, chosen, jax.random.key(run.seed))
        train = [shuffled_labels(client, run.seed) for client in run.data.train] if shuffle else run.data.train
        if own is directions:
            named = {trees.path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(adapted.backbone)}
            sides = [leaf.nbytes for name, leaf in named.items() if name.endswith(("lora_a", "lora_b"))]
            run.sent(down=sum(rank * size // max(config.ranks) for rank in config.ranks for size in sides))
        ranks = {} if rule is ffm.fedavg else {"ranks": config.ranks}
        task = tasks.classification(adapted)
        algorithm = rule(task, optax.adam(run["learning_rate"]), local_steps=4, batch_size=8, **ranks, **how)
        return spend(run, algorithm, train, adapted, task)

    return arm


def spend(
    run: study.Run, algorithm: Any, train: list[Arrays], adapted: peft.Adapted, task: ffm.Task
) -> dict[str, float]:
    """Runs to the end of the budget; the accuracy of every client's model on its own sentences."""
    test = ffm.Population.from_clients(run.data.test)
    found = run.simulate(
        algorithm, ffm.Population.from_clients(train), adapted.delta, run.config.most_rounds,
        backbone=adapted.backbone, cohort_size=len(train), task=task, test=test.arrays,
        most_bytes=budget(run) - sum(run.bytes.values()),
    )  # fmt: skip
    return {"accuracy": float(run.score_clients(found, task, test, "accuracy").mean())}


def untrained(run: study.Run) -> dict[str, float]:
    """The random head."""
    adapted = peft.apply(run.data.model, peft.head(), jax.random.key(run.seed))
    test = ffm.Population.from_clients(run.data.test).arrays
    scores = ffm.evaluate(tasks.classification(adapted), adapted.delta, adapted.backbone, test)
    return {"accuracy": float(scores["accuracy"].mean())}


def rule(name: str, label: str, **how: Any) -> study.Arm:
    """An arm that is tuned."""
    return study.Arm(name, adapters(getattr(lora_rules, name), **how), label, {"learning_rate": "grid"})


RULES = (
    rule("fedit", "FedIT, padded"),
    rule("hetlora", "HetLoRA", gamma=0.99, tail_penalty=0.01),
    rule("flexlora", "FlexLoRA"),
    rule("ffa_lora", "FFA-LoRA"),
    rule("rolora", "RoLoRA"),
    rule("fedsa_lora", "FedSA-LoRA, personal B"),
    rule("fedex_lora", "FedEx-LoRA", scaling=2.0),
    rule("flora", "FLoRA", scaling=2.0),
    rule("fed_sb", "Fed-SB", own=directions),
)
CONTROLS = (
    study.Arm(
        "head", adapters(ffm.fedavg, own=lambda config: peft.head()), "head alone, trained", {"learning_rate": "grid"}
    ),
    study.Arm("shuffled", adapters(lora_rules.fedit, shuffle=True), "FedIT, shuffled labels", like="fedit"),
    study.Arm("untrained", untrained, "random head, untrained"),
)

STUDY = study.Study(
    question="Which LoRA aggregation rule gets furthest on a budget of bytes, with clients of rank 2 to 16?",
    expected="FedSA-LoRA above FedIT, HetLoRA and FlexLoRA; FFA-LoRA below; FLoRA and FedEx-LoRA last, as they send most",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*RULES, *CONTROLS),
    comparisons=study.against("fedit", RULES),
    controls=(
        study.Control("head", "fedit", "The task does not need adapters: that a rule gets this far says little."),
        study.Control("shuffled", "fedit"),
        study.Control("untrained", "fedit"),
    ),
)
