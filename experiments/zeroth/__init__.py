"""Can scalars alone tune all 22.7 million parameters of a pretrained model?

FedKSeed: a client sends 8 bytes a step for any size of the model. MiniLM with a new head, all of
it trained; 32 clients, 8 of each of four domains of rated sentences, 120 training sentences each;
10 rounds of 4 clients with 5 steps of 32 sentences. `--set text=shakespeare --set cohort=2 --set
rounds=4 --set local_steps=2 --set batch_size=2 --set grid=1e-6,3e-6,1e-5` does the same with all
134.5 million of SmolLM2-135M on 32 roles of Shakespeare, judged on plays that no client has.

Score: loss on sentences of documents that no client trains on. Beside it, XLA's numbers for
compiled programs: the memory of a client at work beyond its arguments, its results and a model
of its own, and that of a forward pass, of a perturbed model where the method has one. FedAvg
with SGD shows what gradients reach in as many steps.

Controls: a server that applies the same scalars along other directions; and no training.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fedjax_fm import study
from fedjax_fm.experiments.zeroth.texts import Data, sentiment, shakespeare
from fedjax_fm.experiments.zeroth.training import fedavg, untrained, zero_order
from fedjax_fm.study import arm_of


@dataclass(frozen=True)
class Config:
    """Settings."""

    text: Literal["sentiment", "shakespeare"] = "sentiment"
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    decoder: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    max_length: int = 32
    decoder_length: int = 64
    per_domain: int = 8  # clients
    train: int = 120  # sentences of a client
    test: int = 16
    plays: int = 16  # of the roles that train, at most two thirds of the split's
    roles: int = 32  # that train, and half as many that test
    cohort: int = 4
    rounds: int = 10
    tuning_rounds: int = 5
    local_steps: int = 5
    batch_size: int = 32
    grid: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # of FedKSeed
    sgd_grid: tuple[float, ...] = (1e-2, 3e-2, 1e-1)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes = {"max_length": 12, "per_domain": 1, "train": 16, "test": 8}
        rounds = {"rounds": 2, "tuning_rounds": 1, "local_steps": 2, "batch_size": 8}
        one = {"grid": (3e-3,), "sgd_grid": (3e-2,), "seeds": (0, 1)}
        return dataclasses.replace(self, **sizes, **rounds, **one)


def data(config: Config, seed: int, split: str) -> Data:
    """Clients with sentences of a domain, or roles of some plays."""
    read = sentiment if config.text == "sentiment" else shakespeare
    return read(config, seed, split)


GRID, SGD_GRID = {"learning_rate": "grid"}, {"learning_rate": "sgd_grid"}
CONFUSED = {"confuse": True, "like": "fedkseed"}
STUDY = study.Study(
    question="Can scalars alone tune all 22.7 million parameters of a pretrained model?",
    expected="Pro a little better than FedKSeed, both better than no training, FedAvg far better",
    config=Config,
    data=data,
    primary=study.LOSS,
    scores=(
        study.ACCURACY,
        study.Score("client", "a client at work", "MB", highest=False),
        study.Score("forward", "a forward pass", "MB", highest=False),
    ),
    arms=(
        arm_of("fedkseed", zero_order, "FedKSeed", GRID),
        arm_of("pro", zero_order, "FedKSeed-Pro", GRID, pro=True),
        arm_of("fedavg", fedavg, "FedAvg, SGD on everything", SGD_GRID),
        arm_of("confused", zero_order, "FedKSeed, other directions", **CONFUSED),
        arm_of("untrained", untrained, "no training"),
    ),
    comparisons=[("pro", "fedkseed"), ("fedkseed", "fedavg")],
    controls=(
        study.Control(
            "confused", "fedkseed", "The scalars say nothing of the directions."
        ),
        study.Control("untrained", "fedkseed"),
    ),
)
