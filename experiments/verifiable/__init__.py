"""Rewards that are checked exactly: does GRPO at the clients beat showing the answers?

Made questions of two easy kinds, four clients a kind, with one right answer each. A
decoder of 86 thousand numbers that begins with random weights: a pretrained
one (`--set model=HuggingFaceTB/SmolLM2-135M-Instruct rank=8`, LoRA on q and v) takes an
accelerator. First, for all arms alike, some rounds of federated tuning on the answers of
some questions, so that the form of an answer is known; then on other questions either
GRPO, eight answers to a question and 1 for the right tokens, or more tuning on their
answers. Tuning sees eight times as many
examples a step, so that both learn from as many answers; the tokens of both are in each
cell's notes. Two learning rates for each.

Score: new questions of the same kinds whose greedy answer the exact checker takes; the
share that cannot be read stands beside it, and the tokens of an answer.

Controls: GRPO that is rewarded for the answers of other questions; GRPO that is rewarded
for length; the model after the first rounds.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.verifiable import small
from fedjax_fm.experiments.verifiable.arms import as_it_begins, rewarded, shown
from fedjax_fm.experiments.verifiable.questions import Asked, asked


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = small.NAME  # or a pretrained one
    width: int = 64  # of the small model
    layers: int = 2
    rank: int = 8  # of LoRA in a pretrained model
    kinds: tuple[str, ...] = ("coin", "comparison")
    clients: int = 4  # of a kind
    first: int = 256  # questions of a client, whose answers all arms are shown
    own: int = 256  # questions of a client, to learn from
    test: int = 100  # questions of a kind
    length: int = 52  # tokens of a prompt
    new_tokens: int = 4
    group: int = 8
    inner_epochs: int = 1
    kl: float = 0.0
    temperature: float = 1.0
    first_rounds: int = 100
    first_rate: float = 3e-3
    rounds: int = 60
    tuning_rounds: int = 20
    local_steps: int = 2
    batch_size: int = 4
    grid: tuple[float, ...] = (3e-4, 1e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        few = {"kinds": ("coin",), "first": 4, "own": 4, "test": 3, "new_tokens": 3}
        walk = {"first_rounds": 1, "rounds": 1, "tuning_rounds": 1, "local_steps": 1}
        less = {"group": 2, "batch_size": 2, "grid": (1e-3,), "seeds": (0,)}
        return dataclasses.replace(self, **few, **walk, **less)


def data(config: Config, seed: int, split: str) -> Asked:
    """The questions of the split, in tokens."""
    return asked(config, seed, split)


GRID = {"learning_rate": "grid"}
ARMS = (
    study.arm_of("grpo", rewarded, "GRPO, checked answers", GRID, by="answers"),
    study.Arm("sft", shown, "tuning on the answers, as many", GRID),
)
CONTROLS = (
    study.arm_of("other", rewarded, "GRPO, other answers", like="grpo", by="others"),
    study.arm_of("length", rewarded, "GRPO, length", like="grpo", by="length"),
    study.Arm("start", as_it_begins, "after the first rounds"),
)
STUDY = study.Study(
    question="Does GRPO at the clients beat showing them as many answers?",
    expected="GRPO above the model after the first rounds, and below tuning on the answers",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*ARMS, *CONTROLS),
    comparisons=(("grpo", "sft"), ("grpo", "start")),
    controls=(study.Control("other", "grpo"), study.Control("length", "grpo")),
    scores=(
        study.percent("unparsable", "cannot be read", highest=False),
        study.Score("tokens", "tokens an answer", highest=False),
    ),
)
