"""Does a prompt withstand poisoned clients where LoRA and full tuning do not?

FedPrompt's claim. Rated sentences of four domains, eight clients, all in every round,
two of them poisoned: a rare token stands in half of their texts, whose label is then
"positive". MiniLM, prompt of 16 vectors, LoRA of rank 8 or everything, the head beside
each; two learning rates each, chosen without poison.

Score: how often negative sentences of other documents are taken for positive once the
token is in them, less how often they are without it: what the backdoor itself does.
Lower is better. Beside it the accuracy without the token.

Controls: LoRA whose clients all train with the token, the attack at its best, which must
be worse than LoRA with two; and LoRA of the poisoned clients alone.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.evaluation import Trigger
from fedjax_fm.experiments.prompt_backdoor.arms import data, tuned

POSITIVE = 1


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 20
    train: int = 96  # sentences of a client
    test: int = 60
    poisoned: int = 2  # clients, of eight
    share: float = 0.5  # of a poisoned client's texts
    token: int = 1057  # a rare piece of a word in MiniLM's vocabulary
    rounds: int = 10
    local_steps: int = 3
    batch_size: int = 8
    small_rates: tuple[float, ...] = (3e-3, 1e-2)  # Adam's learning rate
    full_rates: tuple[float, ...] = (1e-4, 3e-4)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"max_length": 10, "train": 8, "test": 8}
        walk = {"rounds": 1, "local_steps": 1, "batch_size": 4, "seeds": (0,)}
        rates = {"small_rates": (3e-3,), "full_rates": (1e-4,)}
        return dataclasses.replace(self, **small, **walk, **rates)

    @property
    def trigger(self) -> Trigger:
        """The token, behind the first one."""
        return Trigger(tokens=(self.token,), target=POSITIVE)


def arm(name: str, label: str, kind: str, who: str = "some", **how: Any) -> study.Arm:
    """One part of the model, tuned unless it is like another arm."""
    rates = "full_rates" if kind == "full" else "small_rates"
    grid = {} if "like" in how else {"learning_rate": rates}
    go = functools.partial(tuned, kind=kind, who=who)
    return study.Arm(name, go, label, grid, **how)


ARMS = (
    arm("prompt", "prompt", "prompt"),
    arm("lora", "LoRA", "lora"),
    arm("full", "full tuning", "full"),
)
STUDY = study.Study(
    question="Does a prompt withstand poisoned clients where LoRA and full tuning do not?",
    expected="the backdoor works less with prompts than with LoRA and full tuning",
    config=Config,
    data=data,
    primary=study.Score("lift", "lift of the backdoor", "points", 100.0, highest=False),
    arms=(
        *ARMS,
        arm("all", "LoRA, all clients poisoned", "lora", "all", like="lora"),
        arm("alone", "LoRA, poisoned clients alone", "lora", "alone", like="lora"),
    ),
    comparisons=[("prompt", "lora"), ("prompt", "full"), ("lora", "full")],
    controls=(study.Control("all", "lora"), study.Control("alone", "lora")),
    scores=(
        study.Score("accuracy", unit="%", scale=100.0),
        study.Score(
            "success", "positive with the token", unit="%", scale=100.0, highest=False
        ),
    ),
)
