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
from typing import Any, Literal

from fedjax_fm import study
from fedjax_fm.experiments.communication.clients import data
from fedjax_fm.experiments.communication.training import (
    averaged,
    by_gradient,
    trained,
    untrained,
)
from fedjax_fm.study import arm_of, percent


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


LOCAL, GRADIENT = {"rate": "grid"}, {"rate": "gradient_grid"}


def arm(
    name: str, label: str, make: Callable, grid: dict[str, str] = LOCAL, **how: Any
) -> study.Arm:
    """One method."""
    return arm_of(name, trained, label, grid, make=make, **how)


FEDAVG = averaged("fedavg")
ARMS = (
    arm("fedavg", "FedAvg", FEDAVG),
    arm("fedpaq", "FedPAQ, 4 bits", averaged("fedpaq")),
    arm("topk", "top-k, error feedback", FEDAVG, remembers=True),
    arm("fedlin", "FedLin, top-k", by_gradient("fedlin", "top_k")),
    arm("fedobd", "FedOBD", averaged("fedobd"), longer=True),
    arm("flasc", "FLASC", averaged("flasc"), longer=True),
    arm("docofl", "DoCoFL", averaged("docofl")),
    arm("diana", "DIANA", by_gradient("diana"), GRADIENT),
    arm("ef21", "EF21, top-k", by_gradient("ef21", "top_k"), GRADIENT),
    arm("soteriafl", "SoteriaFL, no noise", by_gradient("soteriafl"), GRADIENT),
)
CONTROLS = (
    study.shuffled(ARMS[0], "shuffled labels"),
    arm_of("untrained", untrained, "before training", like="fedavg"),
)
COST = {"highest": False, "digits": 2}
STUDY = study.Study(
    question="What does a byte buy, with each of the compressed methods?",
    expected="at equal rounds FedPAQ, DoCoFL and FedOBD within a point of FedAvg, top-k "
    "and FLASC a little below, DIANA, EF21 and SoteriaFL far below, as one step is less "
    "than four; at equal bytes FedOBD and FLASC first, as they compress both ways, then "
    "those that compress one way, FedAvg and FedLin last; at 1 Mbit/s the order of bytes "
    "for MiniLM's adapters, and that of rounds else",
    config=Config,
    data=data,
    primary=dataclasses.replace(study.ACCURACY, label="accuracy at equal bytes"),
    scores=(
        percent("rounds", "at equal rounds"),
        percent("slow", "at equal seconds, 1 Mbit/s"),
        percent("fast", "at equal seconds, 100 Mbit/s"),
        study.Score("to_up", "to the target, up", "MB", **COST),
        study.Score("to_both", "to the target, in all", "MB", **COST),
        study.Score("to_slow", "to the target, 1 Mbit/s", "s", **COST),
        study.Score("to_fast", "to the target, 100 Mbit/s", "s", **COST),
    ),
    arms=(*ARMS, *CONTROLS),
    comparisons=[*study.against("fedavg", ARMS), ("ef21", "diana")],
    controls=[study.Control(control.name, "fedavg") for control in CONTROLS],
)
