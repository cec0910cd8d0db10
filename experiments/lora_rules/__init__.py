"""Which LoRA aggregation rule gets furthest on a budget of bytes, with ranks 2 to 16?

Eight clients, two of each of four domains of rated sentences, 80 training and 100 test
sentences of other documents each; which client has which rank is drawn. MiniLM with a
head frozen at random values, the same for all arms of a seed, so that all that is
learned goes through the adapters on the last layer's feed-forward matrices; what the
five layers before give is computed once. All clients every round, 4 Adam steps of 8
sentences. The budget is what FedIT sends in ten rounds, up and down.

Score: accuracy on the clients' own test sentences, with the client's own model where a
rule has one. HetLoRA runs whole (lambda 0.01, gamma 0.99). Fed-SB alone takes its
directions and its start from the signs of gradients on 512 labelled tuning sentences,
and is billed for sending them.

Controls: FedIT on shuffled labels; the random head, untrained; and the head alone,
trained: if it is not worse than FedIT, the task does not need adapters, and the study
says little about rules.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks, trees
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.experiments.shared.sentences import shuffled_labels
from fedjax_fm.experiments.shared.tail import deal_hidden
from fedjax_fm.peft.lora_sb import first_gradients, first_updates, lora_sb

RANKS = (2, 4, 8, 16, 2, 4, 8, 16)
LARGEST = max(RANKS)
LORA = {
    "alpha": 2.0 * LARGEST,
    "targets": r"^layer\.(intermediate|output)\.dense$",
    "modules_to_save": (),
}


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 20
    train: int = 80  # sentences of a client
    test: int = 100
    public: int = 512  # labelled tuning sentences that Fed-SB sees
    budget_rounds: int = 10  # of FedIT, whose bytes are the budget
    tuning_rounds: int = 5  # likewise, for the choice of learning rates
    most_rounds: int = 30
    grid: tuple[float, ...] = (4e-3, 16e-3, 64e-3, 256e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            train=16,
            test=10,
            public=32,
            budget_rounds=2,
            tuning_rounds=1,
            most_rounds=3,
            grid=(16e-3,),
            seeds=(0, 1),
        )


def data(config: Config, seed: int, split: str) -> Any:
    """Eight clients, in the order of the ranks."""
    sizes = {"train": config.train, "test": config.test, "public": config.public}
    return deal_hidden(
        config.model, config.max_length, seed, split, per_domain=2, **sizes
    )


def budget(run: study.Run) -> int:
    """Bytes that FedIT sends, up and down, in the rounds of the budget."""
    rounds = run.config.tuning_rounds if run.is_tuning else run.config.budget_rounds
    adapted = peft.apply(run.data.model, peft.lora(LARGEST, **LORA))
    largest = trees.nbytes(adapted.delta)
    return rounds * 2 * sum(at_rank(largest, rank) for rank in RANKS)


def at_rank(n_bytes: int, rank: int) -> int:
    """The bytes of a smaller rank, of factors that have `n_bytes` at the largest."""
    return n_bytes * rank // LARGEST


def directions(run: study.Run) -> peft.Method:
    """LoRA-SB: frozen directions from labelled public sentences.

    Every client is sent them at its rank.
    """
    public = run.data.public

    def loss(model: Any) -> jax.Array:
        scores = model(public["hidden"], public["attention_mask"])
        nats = optax.softmax_cross_entropy_with_integer_labels(scores, public["label"])
        return nats.mean()

    gradients = first_gradients(run.data.model, loss, targets=LORA["targets"])
    method = lora_sb(LARGEST, updates=first_updates(gradients, 1e-3), **LORA)
    backbone = peft.apply(run.data.model, method).backbone
    for path, leaf in jax.tree.leaves_with_path(backbone):
        if trees.path_of(path).endswith(("lora_a", "lora_b")):
            run.sent(down=sum(at_rank(leaf.nbytes, rank) for rank in RANKS))
    return method


def arm(
    name: str, label: str, method: Any = None, shuffle: bool = False, **how: Any
) -> study.Arm:
    """One rule, until the next round would exceed the budget.

    Args:
      name: of the arm, and of the rule where there is one.
      label: on pages.
      method: `method(run)`, what is trained; default: LoRA.
      shuffle: FedIT on shuffled labels.
      **how: settings of the rule.
    """

    def go(run: study.Run) -> dict[str, float]:
        chosen = method(run) if method else peft.lora(LARGEST, **LORA)
        adapted = peft.apply(run.data.model, chosen, jax.random.key(run.seed))
        task, adam = tasks.classification(adapted), optax.adam(run["learning_rate"])
        steps = {"local_steps": 4, "batch_size": 8, **how}
        rule = getattr(lora_rules, "fedit" if shuffle else name, None)
        if rule is None:
            algorithm = ffm.fedavg(task, adam, **steps)
        else:
            algorithm = rule(task, adam, ranks=RANKS, **steps)
        train = run.data.train
        if shuffle:
            train = [shuffled_labels(client, run.seed) for client in train]
        test = ffm.Population.from_clients(run.data.test)
        found = run.simulate(
            algorithm,
            ffm.Population.from_clients(train),
            adapted.delta,
            run.config.most_rounds,
            backbone=adapted.backbone,
            cohort_size=len(RANKS),
            task=task,
            test=test,
            most_bytes=budget(run) - sum(run.bytes.values()),
        )
        each = run.score_clients(found, task, test, "accuracy")
        return {"accuracy": float(each.mean())}

    if shuffle:
        return study.Arm(name, go, label, like="fedit")
    return study.Arm(name, go, label, {"learning_rate": "grid"})


def untrained(run: study.Run) -> dict[str, float]:
    """The random head."""
    adapted = peft.apply(run.data.model, peft.head())
    task = tasks.classification(adapted)
    test = ffm.Population.from_clients(run.data.test).arrays
    scores = ffm.evaluate(task, adapted.delta, adapted.backbone, test)
    return {"accuracy": float(scores["accuracy"].mean())}


RULES = (
    arm("fedit", "FedIT, padded"),
    arm("hetlora", "HetLoRA", gamma=0.99, tail_penalty=0.01),
    arm("flexlora", "FlexLoRA"),
    arm("ffa_lora", "FFA-LoRA"),
    arm("rolora", "RoLoRA"),
    arm("fedsa_lora", "FedSA-LoRA, personal B"),
    arm("fedex_lora", "FedEx-LoRA", scaling=2.0),
    arm("flora", "FLoRA", scaling=2.0),
    arm("fed_sb", "Fed-SB", directions),
)
CONTROLS = (
    arm("head", "head alone, trained", lambda run: peft.head()),
    arm("shuffled", "FedIT, shuffled labels", shuffle=True),
    study.Arm("untrained", untrained, "random head, untrained"),
)
STUDY = study.Study(
    question="Which LoRA aggregation rule gets furthest on a budget of bytes, with "
    "clients of rank 2 to 16?",
    expected="FedSA-LoRA above FedIT, HetLoRA and FlexLoRA; FFA-LoRA below; FLoRA and "
    "FedEx-LoRA last, as they send most",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*RULES, *CONTROLS),
    comparisons=study.against("fedit", RULES),
    controls=(
        study.Control(
            "head",
            "fedit",
            "The task does not need adapters: that a rule gets this far says little.",
        ),
        study.Control("shuffled", "fedit"),
        study.Control("untrained", "fedit"),
    ),
)
