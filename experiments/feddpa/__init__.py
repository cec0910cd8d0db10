"""Does a private adapter beside the shared one pay where clients differ or disagree?

Eight clients, two of each of four domains of rated sentences (tweets, product reviews, film
reviews, editorials), 160 training sentences each, all of them in every round. MiniLM, LoRA of
rank 8 on query and value and a head; 10 rounds of 4 Adam steps of 8 sentences, as many for a
private adapter as for the shared one. In the second half of the arms the second client of every
domain calls good what the first one calls bad: no shared adapter can please both.

Score: accuracy on 60 sentences of the client's own domain. Beside it: on 60 of the other domains,
the shift at test time that FedDPA is made for, and what the private adapter counts on the own
domain. No test document is a training document. One trained run is judged half and half, by
instance (the paper's weights, from 5 of the client's sentences) and by its private adapters
alone. `--set omega_max=1` lets the weights by instance reach 1 instead of a half,
`--set omega_weighs=shared` reads them as the released script does.

Controls: local training on shuffled labels; and FedIT where clients disagree, which must be worse
than local training there, or they do not disagree in what is learned.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fedjax_fm import study
from fedjax_fm.experiments.feddpa.adapters import FEDIT, LOCAL, dpa_f, dpa_t, trained
from fedjax_fm.experiments.feddpa.clients import data
from fedjax_fm.experiments.feddpa.mixes import ALONE, HALF, SHARED, by_instance
from fedjax_fm.study import arm_of, percent


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 24
    rank: int = 8
    train: int = 160  # sentences of a client
    test: int = 60  # of its own domain, and as many of the others
    instances: int = 5  # training sentences that a test sentence is compared with
    omega_max: float = 0.5
    omega_weighs: Literal["private", "shared"] = "private"
    rounds: int = 10
    tuning_rounds: int = 5
    local_steps: int = 4
    batch_size: int = 8
    grid: tuple[float, ...] = (2.5e-3, 5e-3, 1e-2)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes = {"max_length": 12, "train": 16, "test": 8, "grid": (5e-3,)}
        rounds = {"rounds": 2, "tuning_rounds": 1, "local_steps": 2}
        return dataclasses.replace(self, **sizes, **rounds, seeds=(0, 1))


def arms(turned: bool) -> list[study.Arm]:
    """The arms of all methods.

    Args:
      turned: whether half of the clients turn the labels. Those arms take the settings
        of the others.
    """
    rows = [
        ("fedit", FEDIT, SHARED, "FedIT", None),
        ("f_half", dpa_f, HALF, "FedDPA-F, half and half", None),
        ("f_instance", dpa_f, by_instance, "FedDPA-F, by instance", "f_half"),
        ("f_alone", dpa_f, ALONE, "FedDPA-F, private alone", "f_half"),
        ("t_half", dpa_t, HALF, "FedDPA-T, half and half", None),
        ("t_instance", dpa_t, by_instance, "FedDPA-T, by instance", "t_half"),
        ("t_alone", dpa_t, ALONE, "FedDPA-T, private alone", "t_half"),
        ("local", LOCAL, ALONE, "local only", None),
    ]
    found = []
    for name, make, mix, label, like in rows:
        how = {"make": make, "mix": mix, "turned": turned}
        if turned:
            name, label, like = f"{name}_turned", f"{label}, turned", like or name
        grid = {} if like else {"learning_rate": "grid"}
        found.append(arm_of(name, trained, label, grid, like=like, **how))
    return found


PLAIN, TURNED = arms(turned=False), arms(turned=True)
DUAL = ("f_half", "f_instance", "t_half", "t_instance")
STUDY = study.Study(
    question="Does a private adapter beside the shared one pay, where clients differ, "
    "and where they disagree?",
    expected="by instance above FedIT on the own domain and not below it on others, "
    "FedDPA-T above F; private alone and local only below on others; where clients "
    "disagree, all above FedIT",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(
        percent("others", "accuracy on other domains"),
        study.Score("mix", "mix on the own domain", digits=2),
    ),
    arms=(*PLAIN, *TURNED, study.shuffled(PLAIN[-1], "local, shuffled labels")),
    comparisons=[
        *((name, "fedit") for name in DUAL),
        *((f"{name}_turned", "fedit_turned") for name in DUAL),
        ("f_half", "local"),
        ("t_half", "local"),
        ("f_half_turned", "local_turned"),
        ("t_half_turned", "local_turned"),
    ],
    controls=(
        study.Control("shuffled", "local"),
        study.Control(
            "fedit_turned",
            "local_turned",
            "The clients do not disagree in what is learned.",
        ),
    ),
)
