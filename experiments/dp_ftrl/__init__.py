"""Is private training without sampling possible, as DP-FTRL claims?

Kairouz et al. 2021; Xu et al. 2023 (Gboard). Users come when they have charged and
rested, so that amplification by sampling cannot be counted on. What protects them is
noise that is correlated over rounds, and a timer: none comes again within `rest` rounds.

Users are Shakespeare's speaking roles of at least 20 words, their first 400. A model
reads four words of the 500 commonest of the tuning plays and says the next: tied
embeddings, some fifteen thousand numbers. 64 users a round, 64 rounds, one epoch,
momentum at the server. Test: roles that never train. Words beyond the 500 are read as
one symbol and never asked for.

Noise: independent (DP-FedAvg), a binary tree, banded. All three use the same sampler and
the same rho of zero-concentrated privacy, of a client's contribution there or zero:

    rho = (sensitivity / z)^2 / 2,   z the noise multiplier

Rate and clip norm are chosen at rho 1 for each kind of noise, and once without noise, on
users of other plays. The log of who came is checked against the timer.

Controls: no training; without noise, on labels permuted among all users.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.experiments.dp_ftrl.training import private, untrained
from fedjax_fm.experiments.dp_ftrl.words import data

NOISES = {"independent": "DP-FedAvg", "tree": "binary tree", "banded": "banded"}
RHOS, TUNED_AT = (0.2, 1.0, 2.0), 1.0


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run dp_ftrl`; change one by `--set name=value`."""

    vocabulary: int = 500
    least: int = 20  # words of a user
    most: int = 400
    test_share: float = 0.15  # of the users
    cohort: int = 64
    rest: int = 8  # rounds between two participations of a user, at least
    rounds: int = 64
    epochs: int = 1
    batch_size: int = 16
    width: int = 24
    momentum: float = 0.9  # at the server
    rates: tuple[float, ...] = (0.3, 1.0)
    clips: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes: dict[str, Any] = {"vocabulary": 50, "most": 60, "width": 4, "rounds": 4}
        few: dict[str, Any] = {"rates": (1.0,), "clips": (1.0,), "seeds": (0,)}
        return dataclasses.replace(self, **sizes, **few, cohort=10, rest=2)


def arm(noise: str, rho: float) -> study.Arm:
    """One kind of noise; it is tuned at one rho."""
    name = f"{noise}_rho{rho:g}"
    like = None if rho == TUNED_AT else f"{noise}_rho{TUNED_AT:g}"
    grid = {} if like else GRID
    how = {"noise": noise, "rho": rho}
    label = f"{NOISES[noise]}, rho {rho:g}"
    return study.arm_of(name, private, label, grid, like=like, **how)


GRID = {"rate": "rates", "clip": "clips"}
NOISELESS: dict[str, Any] = {"noise": "independent", "rho": None}
NO_NOISE = study.arm_of("no_noise", private, "no noise", GRID, **NOISELESS)
STUDY = study.Study(
    question="Is private training without sampling possible, as DP-FTRL claims?",
    expected="at each rho banded noise first, the tree between it and DP-FedAvg, whose "
    "noise adds up over rounds; the gap largest at rho 0.2; at rho 2 banded noise within "
    "two points of no noise (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(
        study.Score("loss", "nats a word", highest=False, digits=3),
        study.Score("noise", "noise multiplier", highest=False, digits=2),
        study.Score("separation", "least rounds between participations", digits=0),
        study.Score("times", "most participations", highest=False, digits=0),
    ),
    arms=(
        *(arm(noise, rho) for rho in RHOS for noise in NOISES),
        NO_NOISE,
        study.shuffled(NO_NOISE, "no noise, labels permuted"),
        study.arm_of("untrained", untrained, "before training", like="no_noise"),
    ),
    comparisons=[
        (f"{noise}_rho{rho:g}", f"independent_rho{rho:g}")
        for rho in RHOS
        for noise in ("tree", "banded")
    ],
    controls=(
        study.Control("shuffled", "no_noise"),
        study.Control("untrained", "no_noise"),
    ),
)
