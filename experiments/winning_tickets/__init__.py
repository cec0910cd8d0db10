"""Is a mask worth more with the weights that it was found with?

The lottery ticket hypothesis (Frankle and Carbin, 2019): a network that was trained, pruned
and rewound, again and again, has a small part that trains as well as the whole, from
the weights that it began with, and not from others. The 1797 digits of scikit-learn; a
quarter is for tuning, of the rest 300 are the test and 10 clients have the others, by a
Dirichlet partition over the label (alpha 1). A perceptron 64-256-256-10; each level
trains it for some rounds and drops 20 % of what is left.

A level's mask is trained once more, for as many rounds as a level: from the weights that
the run began with (the ticket); from new ones (the paper's control); and a random mask of
the same density in each layer, from the first weights; and the ticket's mask on the
first weights, not trained again. Each has the rate that is best for it, of three. Masked,
not faster.

Score: accuracy on the test, at 21 % of the weights (7 levels) and 9 % (11 levels).

Controls: the ticket on shuffled labels; the whole network, untrained.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.experiments.shared.digits import Digits, deal
from fedjax_fm.experiments.winning_tickets.arms import (
    dense,
    levels_of,
    ticket,
    untrained,
)


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run winning_tickets`; change one by `--set name=value`."""

    clients: int = 10
    alpha: float = 1.0
    test: int = 300
    width: int = 256
    levels: tuple[int, int] = (7, 11)  # 0.8^7 = 0.21, 0.8^11 = 0.086
    rounds: int = 20  # of a level
    local_steps: int = 5
    batch_size: int = 20
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)  # of SGD with momentum 0.9
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small: dict[str, Any] = {
            "width": 16,
            "levels": (1, 1),
            "rounds": 2,
            "local_steps": 1,
        }
        few: dict[str, Any] = {"rates": (0.1,), "seeds": (0,)}
        return dataclasses.replace(self, **small, **few)


def data(config: Config, seed: int, split: str) -> Digits:
    """Deals the split's images."""
    return deal(
        seed, split, clients=config.clients, alpha=config.alpha, test=config.test
    )


GRID = {"rate": "rates"}
ARMS = [
    study.Arm(f"{name}_{size}", ticket(name, size), f"{label}, {size}", GRID)
    for size in levels_of
    for name, label in {
        "ticket": "ticket, first weights",
        "redrawn": "ticket, new weights",
        "random": "random mask, first weights",
    }.items()
]
STUDY = study.Study(
    question="Is a mask worth more with the weights that it was found with?",
    expected="at 21 and 9 % of the weights: tickets above new weights in the same masks, "
    "and above random masks; at 21 % no worse than the whole network. Masked, not "
    "faster (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(study.Score("density", digits=3),),
    arms=(
        study.Arm("dense", dense, "whole network", GRID),
        *ARMS,
        study.Arm(
            "as_found",
            ticket("ticket", "larger", trains=False),
            "ticket, not trained again",
            like="ticket_larger",
        ),
        study.Arm(
            "shuffled",
            ticket("ticket", "larger", shuffle=True),
            "ticket, shuffled labels",
            like="ticket_larger",
        ),
        study.Arm("untrained", untrained, "whole network, untrained"),
    ),
    comparisons=[
        ("ticket_larger", "redrawn_larger"),
        ("ticket_smaller", "redrawn_smaller"),
        ("ticket_larger", "random_larger"),
        ("ticket_smaller", "random_smaller"),
        ("ticket_larger", "dense"),
        ("ticket_larger", "as_found"),
    ],
    controls=(
        study.Control("shuffled", "ticket_larger"),
        study.Control("untrained", "ticket_larger"),
    ),
)
