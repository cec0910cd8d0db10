"""Which part of a model is worth tuning among clients that differ, at equal rounds and bytes?

A task that passed the gate, dealt to eight clients by Dirichlet (`--set alpha=0.1`, 1, or
`none` for clients that are alike): brown-tags, the part of speech of each word, MiniLM,
or emoji, categories of drawings, DINOv2 at 56 pixels (`--set task=emoji`). Nine parts,
the head beside each, all clients in every round, three learning rates each. `--set
noise=0.5` adds client-level noise: updates are clipped, and the sum gets as much noise
as that share of the clip norm; nothing is accounted, the cohort is everybody.

Score: accuracy on other texts or emoji after all rounds; beside it the accuracy at the
bytes that LoRA sends in all its rounds, at the last look before a method has sent more
(methods that send less keep their last one).

Controls: LoRA on shuffled labels; the untrained model.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

from fedjax_fm import study
from fedjax_fm.experiments.peft_table.arms import tuned, untrained
from fedjax_fm.experiments.peft_table.methods import LABELS, METHODS
from fedjax_fm.experiments.shared.gated import Dealt, deal_gated


@dataclass(frozen=True)
class Config:
    """Settings."""

    task: Literal["brown-tags", "emoji"] = "brown-tags"
    train: int = 480  # examples of all clients
    test: int = 300
    clients: int = 8
    alpha: float | None = 0.1
    max_length: int = 24
    rank: int = 8
    rounds: int = 12
    local_steps: int = 2
    batch_size: int = 8
    noise: float = 0.0  # of client-level privacy, in units of the clip norm
    clip_norm: float = 0.1  # of an update, with noise
    small_rates: tuple[float, ...] = (
        3e-3,
        1e-2,
        3e-2,
    )  # Adam's, of all but full tuning
    full_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"train": 24, "test": 8, "clients": 3, "max_length": 8}
        walk = {"rounds": 1, "local_steps": 1, "batch_size": 4, "seeds": (0,)}
        rates = {"small_rates": (3e-3,), "full_rates": (1e-4,)}
        return dataclasses.replace(self, **small, **walk, **rates)


def data(config: Config, seed: int, split: str) -> Dealt:
    """Examples of the split, dealt to clients."""
    names = ("train", "test", "clients", "alpha", "max_length")
    sizes = {name: getattr(config, name) for name in names}
    return deal_gated(config.task, seed, split, **sizes)


def arm(kind: str, **how: Any) -> study.Arm:
    """One part of the model, with learning rates of its kind."""
    rates = "full_rates" if kind == "full" else "small_rates"
    go = functools.partial(tuned, kind=kind, **how)
    return study.Arm(kind, go, LABELS[kind], {"learning_rate": rates})


ARMS = tuple(arm(kind) for kind in METHODS)
SHUFFLED = functools.partial(tuned, kind="lora", shuffle=True)
STUDY = study.Study(
    question="Which part of a model is worth tuning among clients that differ, at equal "
    "rounds and bytes?",
    expected="full tuning first at equal rounds where clients are alike, and below LoRA "
    "and adapters at Dirichlet 0.1; at equal bytes LoRA, adapters and BitFit above it; "
    "the head last",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(
        *ARMS,
        study.Arm("shuffled", SHUFFLED, "LoRA, shuffled labels", like="lora"),
        study.Arm("untrained", untrained, "untrained"),
    ),
    comparisons=study.against("full", ARMS),
    controls=(study.Control("shuffled", "lora"), study.Control("untrained", "head")),
    scores=(study.Score("at_bytes", "at LoRA's bytes", unit="%", scale=100.0),),
)
