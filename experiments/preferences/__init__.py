"""Preferences of many users: does federated DPO find what one user's pairs cannot?

Two answers to one prompt, of which one was preferred. Planted pairs: a list of words of
one category, and the same list with a stranger in it (a stand-in of Fed-ChatbotPA's
form, which says nothing of the real one). Real pairs, `--set source=rated length=192`:
what somebody said on a topic in two conversations, of which one had the higher rating;
weak, since a rating is of a conversation. A client is a user; held-out pairs are of
other users.

SmolLM2-135M-Instruct, LoRA of rank 8 on q and v. First, for all arms alike, federated
tuning on the chosen answers; then DPO whose reference is that model, or more of the
same tuning. Two learning rates for each arm; all clients in every round.

Score: held-out pairs whose chosen answer gained more, from the model before any tuning,
than the rejected one. Beside it: win rate of greedy answers over those of the first
stage, at equal lengths, by ROUGE-L to the chosen answer, both orders; tokens an answer;
nats an answer from the first stage, of drawn answers.

Controls: DPO on pairs whose order was drawn; the longer answer is the better one.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.preferences.arms import (
    in_one_place,
    longer_is_better,
    tuned_only,
    with_pairs,
)
from fedjax_fm.experiments.preferences.pairs import Dealt, dealt


@dataclass(frozen=True)
class Config:
    """Settings."""

    source: str = "planted"  # or "rated", from the package of chitchat
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    clients: int = 8
    least: int = 4  # pairs of a client
    most: int = 24
    test: int = 64  # held-out pairs, of users of their own
    length: int = 36  # tokens of prompt and answer
    rank: int = 8
    beta: float = 0.1
    first_rounds: int = 2  # of tuning on the chosen answers
    first_rate: float = 1e-3
    rounds: int = 5
    tuning_rounds: int = 3
    local_steps: int = 2
    batch_size: int = 2
    own_models: int = 3  # clients whose own models are scored, in the arm `local`
    prompts: int = 16  # that are answered
    new_tokens: int = 16
    grid: tuple[float, ...] = (3e-4, 1e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"clients": 3, "most": 6, "test": 8, "prompts": 2, "new_tokens": 4}
        walk = {"first_rounds": 1, "rounds": 1, "tuning_rounds": 1, "local_steps": 1}
        return dataclasses.replace(self, **small, **walk, grid=(1e-3,), seeds=(0,))


def data(config: Config, seed: int, split: str) -> Dealt:
    """The pairs of the split, in tokens."""
    return dealt(config, seed, split)


GRID = {"learning_rate": "grid"}
ARMS = (
    study.arm_of("dpo", with_pairs, "federated DPO", GRID),
    study.arm_of("local", with_pairs, "DPO, every client alone", GRID, alone=True),
    study.Arm("central", in_one_place, "DPO in one place, equal pairs", GRID),
    study.Arm("sft", tuned_only, "tuning on chosen answers alone", GRID),
)
STUDY = study.Study(
    question="Does federated DPO find preferences that one user's pairs do not show?",
    expected="federated DPO above local DPO and above tuning on chosen answers alone, "
    "and near DPO in one place",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(
        *ARMS,
        study.arm_of(
            "shuffled", with_pairs, "DPO, order drawn", like="dpo", drawn=True
        ),
        study.Arm("longer", longer_is_better, "the longer answer"),
    ),
    comparisons=study.against("dpo", ARMS),
    controls=(study.Control("shuffled", "dpo"), study.Control("longer", "dpo")),
    scores=(
        study.percent("win_rate", "wins at equal lengths"),
        study.Score("tokens", "tokens an answer"),
        study.Score("kl", "divergence", unit="nats", highest=False, digits=2),
    ),
)
