"""What do FedCLIP's attention adapters bring to a vendor that nobody has trained on?

No pretrained pair of towers is in the packages that are used here. Two that are there
take CLIP's place: a DINOv2 that reads drawings of emoji at 56 pixels, and a MiniLM that
reads their names, both frozen. Two linear projections into one space are trained once a
seed on public emoji, drawings of all vendors with their own names, by CLIP's loss; all
arms start there. That our CLIP, its loss and FedCLIP's adapter compute what
transformers computes is tested on random weights (tests/algorithms/test_fedclip.py).

Other emoji are of clients: each of three vendors is left out in turn, the other two have
four clients each with categories by Dirichlet 0.5, all of them in every round. Texts are
the names of eight categories.

Score: accuracy by names on the vendor that is left out, on emoji of no client, the mean
over vendors; beside it, the same on the vendors that train. Bytes are those of the
rounds; all arms start from the same projections.

Controls: adapters on shuffled categories; projections that were never trained.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.experiments.clip.arms import tuned, zero_shot
from fedjax_fm.experiments.clip.towers import Pairs, pairs


@dataclass(frozen=True)
class Config:
    """Settings."""

    names: int = 700  # emoji, half of them public
    clients: int = 4  # of a vendor
    alpha: float = 0.5
    space: int = 64
    public_steps: int = 300
    rounds: int = 20
    epochs: int = 1
    batch_size: int = 32
    grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2)  # AdamW's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"names": 96, "clients": 2, "space": 8, "public_steps": 4}
        return dataclasses.replace(self, **small, rounds=2, grid=(1e-3,), seeds=(0, 1))


def data(config: Config, seed: int, split: str) -> list[Pairs]:
    """The pairs with each vendor left out in turn."""
    how = {"most": config.names, "clients": config.clients, "alpha": config.alpha}
    return pairs(seed, split, **how)


def arm(name: str, label: str, part: str, **how: Any) -> study.Arm:
    """FedCLIP of a part, tuned unless it is like another arm."""
    grid = {} if "like" in how else {"learning_rate": "grid"}
    like = how.pop("like", None)
    go = functools.partial(tuned, part=part, **how)
    return study.Arm(name, go, label, grid, like=like)


ARMS = (
    arm("image", "FedCLIP, adapter behind images", "image"),
    arm("both", "FedCLIP, adapters behind both", "both"),
    arm("projections", "both projections, averaged", "projections"),
    study.Arm("zero_shot", zero_shot, "zero-shot, by names"),
)
RANDOM = functools.partial(zero_shot, random=True)
STUDY = study.Study(
    question="What do attention adapters bring to a vendor that nobody has trained on?",
    expected="FedCLIP above zero-shot, and above averaged projections; adapters behind "
    "both towers like one behind images",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(
        *ARMS,
        arm("shuffled", "FedCLIP, shuffled names", "image", shuffle=True, like="image"),
        study.Arm("random", RANDOM, "random projections"),
    ),
    comparisons=study.against("image", ARMS),
    controls=(study.Control("shuffled", "image"), study.Control("random", "image")),
    scores=(study.Score("seen", "vendors that train", unit="%", scale=100.0),),
)
