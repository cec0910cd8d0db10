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

from fedjax_fm import study
from fedjax_fm.experiments.lora_rules.rules import trained, untrained
from fedjax_fm.experiments.shared.tail import Dealt, deal_hidden
from fedjax_fm.study import arm_of


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
        sizes = {"train": 16, "test": 10, "public": 32, "grid": (16e-3,)}
        rounds = {"budget_rounds": 2, "tuning_rounds": 1, "most_rounds": 3}
        return dataclasses.replace(self, **sizes, **rounds, seeds=(0, 1))


def data(config: Config, seed: int, split: str) -> Dealt:
    """Eight clients, in the order of the ranks."""
    return deal_hidden(config, seed, split, per_domain=2)


def tuned(rule: str, label: str, **how: Any) -> study.Arm:
    """The rule of that name."""
    return arm_of(rule, trained, label, {"learning_rate": "grid"}, rule=rule, **how)


RULES = (
    tuned("fedit", "FedIT, padded"),
    tuned("hetlora", "HetLoRA", gamma=0.99, tail_penalty=0.01),
    tuned("flexlora", "FlexLoRA"),
    tuned("ffa_lora", "FFA-LoRA"),
    tuned("rolora", "RoLoRA"),
    tuned("fedsa_lora", "FedSA-LoRA, personal B"),
    tuned("fedex_lora", "FedEx-LoRA", scaling=2.0),
    tuned("flora", "FLoRA", scaling=2.0),
    tuned("fed_sb", "Fed-SB"),
)
CONTROLS = (
    tuned("head", "head alone, trained"),
    study.shuffled(RULES[0], "FedIT, shuffled labels"),
    arm_of("untrained", untrained, "random head, untrained"),
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
