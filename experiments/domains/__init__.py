"""Does adversarial adaptation pay for a client without labels, and does it see bad sources?

Domains of the same classes: the 1797 digits of scikit-learn in four forms (plain,
negative, blurred, on a texture), or drawings of emoji of three vendors in eight
categories as a frozen DINOv2 sees them (`--set data=emoji`). Each domain is the target
in turn: its training examples are there without labels, those of the other domains with
them; no digit and no emoji is in two domains. All arms have the same two-layer
extractor, the same disentangler and classifier, all clients in each round and as many
steps; those that adapt have SGD with momentum, two learning rates and two strengths of
the alignment, the others Adam and four learning rates. Sources begin each round of
adapting with the target's parts, but in the arm of sources apart, which is FADA's
algorithm 1 as it is written.

Score: accuracy on the target's test examples, the mean over targets; beside it that of
the worst target, and, where a source has labels at random, the weight that it gets in
the second half of the rounds (a third of four domains is the even share).

Controls: FADA whose sources all have labels at random; the untrained networks.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import study
from fedjax_fm.experiments.domains.arms import (
    adversarial,
    averaged,
    case_of,
    over_targets,
    pooled,
    targets_of,
)
from fedjax_fm.experiments.domains.forms import SETS, Domains


@dataclass(frozen=True)
class Config:
    """Settings."""

    data: Literal["digits", "emoji"] = "digits"
    most: int = 400  # examples of a domain
    targets: int = 4  # domains that are the target in turn; at most all of them
    tuning_targets: int = 2  # of those, that settings are chosen on
    width: int = 64
    rounds: int = 100
    local_steps: int = 2
    batch_size: int = 32
    temperature: float = 0.1  # of the attention
    disentangling: float = 0.1  # of its three terms
    grid: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)  # Adam's learning rate
    adapting_grid: tuple[float, ...] = (1e-2, 1e-1)  # of SGD with momentum
    alignments: tuple[float, ...] = (0.01, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            most=60,
            targets=1,
            tuning_targets=1,
            width=8,
            rounds=3,
            batch_size=16,
            grid=(3e-3,),
            adapting_grid=(3e-3,),
            alignments=(0.3,),
            seeds=(0, 1),
        )


def data(config: Config, seed: int, split: str) -> Domains:
    """Deals the split's contents to domains."""
    return SETS[config.data](seed, split, config.most)


def untrained(run: study.Run) -> dict[str, float]:
    """The networks before the first step."""
    found = []
    for target in targets_of(run):
        case = case_of(run, target, plant=False, shuffle=False)
        scores = ffm.evaluate(case.task, case.delta, (), case.test)
        found.append(float(np.mean(scores["accuracy"])))
    return {"accuracy": float(np.mean(found)), "worst": min(found)}


ADAPTING = {"learning_rate": "adapting_grid", "alignment": "alignments"}
GRID = {"learning_rate": "grid"}
FADA, DANN = adversarial(True, True), adversarial(False, False)
EVEN = adversarial(False, True)
APART = adversarial(True, True, begin="own")
ARMS = (
    study.Arm("fada", over_targets(FADA), "FADA", ADAPTING),
    study.Arm("dann", over_targets(DANN), "DANN, averaged", ADAPTING),
    study.Arm("fedavg", over_targets(averaged), "FedAvg of the sources", GRID),
    study.Arm("source_only", over_targets(pooled), "sources in one place", GRID),
    study.Arm("even", over_targets(EVEN), "FADA, even weights", like="fada"),
    study.Arm("apart", over_targets(APART), "FADA, sources apart", like="fada"),
)
BAD, EVEN_BAD = over_targets(FADA, plant=True), over_targets(EVEN, plant=True)
PLANTED = (
    study.Arm("fada_bad", BAD, "FADA, a bad source", like="fada"),
    study.Arm("even_bad", EVEN_BAD, "even weights, a bad source", like="fada"),
)
SHUFFLED = over_targets(FADA, shuffle=True)
STUDY = study.Study(
    question="Does adversarial adaptation pay for a client without labels, and does its "
    "attention see a bad source?",
    expected="FADA above averaged DANN, that above FedAvg and the sources alone; with a "
    "bad source FADA above even weights, and the bad source below its even share",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(
        *ARMS,
        *PLANTED,
        study.Arm("shuffled", SHUFFLED, "FADA, all labels shuffled", like="fada"),
        study.Arm("untrained", untrained, "untrained"),
    ),
    comparisons=[
        *study.against("fada", ARMS, leave_out=("even", "apart")),
        ("fada", "even"),
        ("fada", "apart"),
        ("dann", "fedavg"),
        ("fada_bad", "even_bad"),
    ],
    controls=(study.Control("shuffled", "fada"), study.Control("untrained", "fada")),
    scores=(
        study.Score("worst", "worst target", unit="%", scale=100.0),
        study.Score("weight", "weight of the first source", highest=False, digits=3),
    ),
)
