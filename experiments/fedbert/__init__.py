"""What does split pre-training lose against one model on all texts, and gain over none?

The eight roles of Shakespeare that speak most (Hamlet, Iago, Henry V, ...), a client each; a
fifth of each role's speeches is held out, other ones for every seed. A WordPiece vocabulary of
1000 from the roles that are no clients. BERT of 2 layers, d = 64, from random weights; rows of 32
tokens; Adam with warm-up and cosine decay. Every arm reads as many rows, 600 steps of 8 clients
with 4 rows each; FedBERT in turn reads them as 120 turns of 10 steps with 16 rows. Rates are
chosen on the eight roles that speak most after those.

Score: perplexity of masked tokens on held-out speeches of all roles; local models are judged on
their role's own, and beside it on those of all roles. Word frequencies of all training texts and
a local model with a quarter of the steps say whether models are undertrained or overfitted.

Controls: FedBERT on words that are shuffled inside each role, for which contexts say nothing; and
the random weights.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.fedbert.speeches import data
from fedjax_fm.experiments.fedbert.training import (
    centralised,
    frequencies,
    in_turn,
    local,
    parallel,
    untrained,
)
from fedjax_fm.study import arm_of


@dataclass(frozen=True)
class Config:
    """Settings."""

    roles: int = 8  # clients
    length: int = 32
    vocabulary: int = 1000
    width: int = 64
    held_out: float = 0.2  # of a role's speeches
    draws: int = 3  # of what is masked in the test
    steps: int = 600  # of the body, where the roles are side by side
    tuning_steps: int = 300
    batch_size: int = 4  # rows of a client and step
    round_steps: int = 10  # of a round side by side, and of a turn
    turn_batch_size: int = 16
    grid: tuple[float, ...] = (1e-3, 2e-3, 4e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"roles": 3, "length": 16, "width": 16, "draws": 1, "grid": (2e-3,)}
        short = {"steps": 12, "tuning_steps": 6, "round_steps": 1, "seeds": (0, 1)}
        return dataclasses.replace(self, **small, **short)


GRID = {"learning_rate": "grid"}
QUARTER = {"share": 0.25, "like": "local"}
SHUFFLED = {"shuffle": True, "like": "parallel"}
STUDY = study.Study(
    question="What does split pre-training lose against one model on all texts, and gain "
    "over none?",
    expected="centralised a little better than FedBERT, side by side and in turn; local far worse",
    config=Config,
    data=data,
    primary=study.PERPLEXITY,
    scores=(
        study.Score("on_all_roles", "on everybody's speeches", highest=False, digits=2),
    ),
    arms=(
        arm_of("frequencies", frequencies, "word frequencies of all roles"),
        arm_of("centralised", centralised, grid=GRID),
        arm_of("parallel", parallel, "FedBERT, side by side", GRID),
        arm_of("in_turn", in_turn, "FedBERT, in turn", GRID),
        arm_of("local", local, "local only", GRID),
        arm_of("local_quarter", local, "local only, a quarter of the steps", **QUARTER),
        arm_of("shuffled", parallel, "side by side, words shuffled", **SHUFFLED),
        arm_of("untrained", untrained, "random weights"),
    ),
    comparisons=[
        *(
            (name, than)
            for than in ("local", "centralised", "frequencies")
            for name in ("parallel", "in_turn")
        ),
        ("in_turn", "parallel"),
    ],
    controls=(
        study.Control("shuffled", "parallel", "No word was learned in its context."),
        study.Control("untrained", "parallel"),
    ),
)
