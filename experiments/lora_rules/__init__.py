"""Which LoRA aggregation rule is worth its bytes, when every rule is tuned alike?

Parts of speech in the Brown corpus, a task that needs tuning (the gate). Clients have
sentences of their own, each its own mix of genres (Dirichlet, alpha 0.3); a client is
judged on 20 sentences of the same mix and other documents. MiniLM; the layers before the
last are frozen and computed once, of the last one query and value have LoRA, and the head
is trained beside it.

Nineteen rules, `--set clients=3`, 10 or 50, of which at most ten take part in a round,
and `--set ranks=equal` (8) or mixed (2, 4, 8 and 16). FRLoRA has one rank in both. Where
ranks are mixed RAVAN has 1, 1, 2 and 4 heads of rank 4. SLoRA spends half of the rounds
on entries of the kernels. Fed-SB takes its directions from 256 labelled tuning sentences
and is billed for sending them.

Every rule has eight learning rates to choose from, which run side by side as one program.
Score: accuracy on the clients' own test words, with the client's own model where a rule
has one; beside it the accuracy when as many bytes have travelled as FedIT sends in all.

Controls: FedIT on shuffled labels; the random head, untrained; the head alone, trained.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fedjax_fm import study
from fedjax_fm.experiments.gate.tasks import MINILM
from fedjax_fm.experiments.lora_rules.arms import trained, untrained
from fedjax_fm.experiments.lora_rules.clients import Dealt, deal
from fedjax_fm.experiments.lora_rules.rules import RULES


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run lora_rules`; change one by `--set name=value`."""

    model: str = MINILM
    clients: int = 10
    ranks: Literal["equal", "mixed"] = "mixed"
    cohort: int = 10  # at most
    sentences: int = 40  # of a client
    judging: int = 20  # sentences of a client
    public: int = 256  # labelled tuning sentences that Fed-SB sees
    alpha: float = 0.3  # of the mix of genres
    max_length: int = 20
    rounds: int = 12
    local_steps: int = 4
    batch_size: int = 8
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3, 128e-3)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes: dict[str, Any] = {"clients": 4, "sentences": 6, "judging": 3}
        sizes |= {"public": 8, "max_length": 8}
        walk: dict[str, Any] = {"rounds": 2, "local_steps": 1, "batch_size": 2}
        return dataclasses.replace(self, **sizes, **walk, rates=(8e-3,), seeds=(0,))


def data(config: Config, seed: int, split: str) -> Dealt:
    """Clients of the split."""
    return deal(config, seed, split)


GRID = {"learning_rate": "rates"}


def tuned(rule: str, label: str) -> study.Arm:
    """The rule of that name."""
    return study.arm_of(rule, trained, label, GRID, rule=rule)


ARMS = [tuned(name, rule.label) for name, rule in RULES.items()]
CONTROLS = (
    tuned("head", "head alone, trained"),
    study.arm_of(
        "shuffled",
        trained,
        "FedIT, shuffled labels",
        like="fedit",
        rule="fedit",
        shuffle=True,
    ),
    study.Arm("untrained", untrained, "random head, untrained"),
)
STUDY = study.Study(
    question="Which LoRA aggregation rule is worth its bytes, when every rule is tuned "
    "alike?",
    expected="every rule above the one that its paper compares it with, Fed-SB no worse "
    "than FedIT; with mixed ranks FlexLoRA and FLoRA further ahead than with equal ones "
    "(EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*ARMS, *CONTROLS),
    comparisons=[(name, rule.than) for name, rule in RULES.items() if rule.than],
    controls=(
        study.Control(
            "head",
            "fedit",
            "The task does not need adapters: that a rule gets this far says little.",
        ),
        study.Control("shuffled", "fedit"),
        study.Control("untrained", "fedit"),
    ),
    scores=(study.percent("at_bytes", "at FedIT's bytes"),),
)
