"""Tasks as clients: does a private adapter pay, on the own task and on unseen ones?

Eight kinds of text in FLAN's format, several patterns each, a quarter of the examples
with two others before them: ratings of tweets and of products, sentences on films to a
given rating (the same kind of rows turned round) and made questions of three kinds, a
client each; ratings of editorials and questions of a fourth kind are of no client.
Examples are shared out in proportion to a task's rows, no task above a cap.
SmolLM2-135M-Instruct, LoRA of rank 8 on q and v, all clients in every round, two
learning rates for each method.

Score: nats a token of answers to other rows of the clients' tasks, each by the client's
own model; beside it the same on tasks of nobody, by the models of three clients where
clients have their own. FedDPA-T mixes its adapters for each example, by its likeness to
five of the client's.

Controls: FedIT on answers of other examples; the model as it is.
"""

import dataclasses
import functools
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.mixed_instructions.arms import (
    alone,
    in_one_place,
    together,
    untuned,
    with_private,
)
from fedjax_fm.experiments.mixed_instructions.mixture import Mixture, mixture


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    examples: int = 180  # of all tasks that train
    maximum: int = 40  # beyond which a task's rows count no more
    few_shot: float = 0.25
    test: int = 8  # examples of a task
    max_length: int = 96  # tokens; longer answers are cut, longer questions left out
    rank: int = 8
    instances: int = 5  # that an example is compared with
    omega_max: float = 0.5
    judges: int = 3  # clients whose models read tasks of nobody
    rounds: int = 3
    tuning_rounds: int = 1
    local_steps: int = 2
    batch_size: int = 2
    grid: tuple[float, ...] = (1e-3, 3e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"examples": 30, "test": 2, "max_length": 64, "instances": 2}
        walk = {"rounds": 1, "tuning_rounds": 1, "local_steps": 1, "judges": 1}
        return dataclasses.replace(self, **small, **walk, grid=(1e-3,), seeds=(0,))


def data(config: Config, seed: int, split: str) -> Mixture:
    """The tasks of the split, in tokens."""
    return mixture(config, seed, split)


GRID = {"learning_rate": "grid"}
ARMS = (
    study.Arm("fedit", together, "FedIT, one adapter", GRID),
    study.Arm("feddpa", with_private, "FedDPA-T, by instance", GRID),
    study.Arm("local", alone, "local only", GRID),
    study.Arm("centralised", in_one_place, "centralised, equal examples", GRID),
)
SHUFFLED = functools.partial(together, shuffle=True)
STUDY = study.Study(
    question="Tasks as clients: does a private adapter pay beside a shared one?",
    expected="FedDPA below FedIT in loss on the clients' own tasks, FedIT below local "
    "training on tasks of nobody, centralised training lowest there",
    config=Config,
    data=data,
    primary=study.LOSS,
    arms=(
        *ARMS,
        study.Arm("zero_shot", untuned, "the model as it is"),
        study.Arm("shuffled", SHUFFLED, "FedIT, answers exchanged", like="fedit"),
    ),
    comparisons=[
        ("feddpa", "fedit"),
        ("feddpa", "local"),
        ("fedit", "local"),
        ("fedit", "centralised"),
    ],
    controls=(study.Control("shuffled", "fedit"), study.Control("zero_shot", "fedit")),
    scores=(
        study.Score("unseen", "tasks of nobody", unit="nats", highest=False, digits=3),
    ),
)
