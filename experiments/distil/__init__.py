"""Which of Distiller's objectives makes a small student better, federated and central?

Emoji of three vendors in eight categories, a task that needs tuning (the gate). The
teacher: DINOv2's last four layers and a head, tuned in one place on pictures of its own,
then frozen. The student: two layers, copied from the first and the last of twelve, and a
head, on the embeddings; a sixth of the layers that the teacher's answer goes through.
Eight clients have other pictures; the embeddings and the eight layers before the teacher's are
frozen, and computed once. 15 rounds of 2 clients with 4 Adam steps of 16 pictures.

Arms: labels alone; soft targets (half of the loss, temperature 2); beside these a
distance of hidden states by mean squares, the cosine or mutual information (MI-alpha),
layers mapped by skipping, to the last, or by the earth mover's distance. Labels alone and
soft targets also where one place has all pictures, at equal steps.

Score: accuracy on the test; and how often the student says what the teacher says.

Controls: labels alone, shuffled; the student, untrained; soft targets of the teacher
before it was tuned.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.experiments.distil.arms import of_teacher, taught, untrained
from fedjax_fm.experiments.distil.pictures import Pictures, deal
from fedjax_fm.experiments.gate.tasks import DINOV2


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run distil`; change one by `--set name=value`."""

    model: str = DINOV2
    taught: int = 400  # pictures of the teacher
    clients: int = 8
    cohort: int = 2
    pictures: int = 32  # of a client
    test: int = 300
    teacher_layers: int = 4  # twice as many as the student's: maps of layers differ
    student_layers: int = 2
    teacher_steps: int = 120
    teacher_rate: float = 1e-4
    rounds: int = 15
    local_steps: int = 4
    batch_size: int = 16
    rates: tuple[float, ...] = (1e-4, 3e-4)  # Adam's
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small: dict[str, Any] = {
            "taught": 8,
            "clients": 2,
            "pictures": 4,
            "test": 8,
            "rounds": 1,
        }
        few: dict[str, Any] = {"teacher_steps": 1, "local_steps": 1, "batch_size": 4}
        few |= {"rates": (3e-4,), "seeds": (0,)}
        return dataclasses.replace(self, **small, **few)


def data(config: Config, seed: int, split: str) -> Pictures:
    """Deals the split's emoji; tuning takes what a quarter has."""
    sizes: dict[str, Any] = {"clients": config.clients, "pictures": config.pictures}
    sizes |= {"taught": config.taught, "test": config.test}
    layers: dict[str, Any] = {"teacher_layers": config.teacher_layers}
    layers |= {"student_layers": config.student_layers}
    return deal(seed, split, model=config.model, **sizes, **layers)


GRID = {"rate": "rates"}
TITLES = {
    "plain": "labels alone",
    "soft": "soft targets",
    "square": "and mean squares",
    "cosine": "and the cosine",
    "information": "and mutual information",
    "last": "and mean squares to the last layer",
    "earth_mover": "and mean squares by the earth mover",
}
ARMS = [study.Arm(name, taught(name), title, GRID) for name, title in TITLES.items()]
CENTRAL = [
    study.Arm(
        f"{name}_central",
        taught(name, central=True),
        f"{TITLES[name]}, in one place",
        GRID,
    )
    for name in ("plain", "soft")
]
CONTROLS = (
    study.Arm("shuffled", taught("plain", shuffle=True), "shuffled", like="plain"),
    study.Arm("untrained", untrained, "untrained", like="plain"),
    study.Arm(
        "untuned", taught("soft", tuned=False), "teacher before tuning", like="soft"
    ),
)
STUDY = study.Study(
    question="Which of Distiller's objectives makes a small student better?",
    expected="soft targets above labels alone, federated and in one place; of the "
    "distances mutual information above mean squares; maps of layers alike (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(study.Score("agreement", unit="%", scale=100.0),),
    arms=(*ARMS, *CENTRAL, study.Arm("teacher", of_teacher), *CONTROLS),
    comparisons=[
        ("soft", "plain"),
        ("soft_central", "plain_central"),
        ("square", "soft"),
        ("information", "square"),
        ("cosine", "square"),
        ("earth_mover", "square"),
        ("last", "square"),
    ],
    controls=(
        study.Control("shuffled", "plain"),
        study.Control("untrained", "plain"),
        study.Control(
            "untuned",
            "soft",
            "What the student gains is not the teacher's knowledge: soft targets smooth.",
        ),
    ),
)
