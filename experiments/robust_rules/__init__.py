"""What does each robust rule keep where a fifth of the clients lie, and what does it cost?

The 1797 digits of scikit-learn; a quarter is for tuning, of the rest 300 are the common
test, 60 the server's (FLTrust's root data), and 25 clients have the others, by a
Dirichlet partition over the label (alpha 1). A perceptron 64-64-64-10; all clients take
part in each of 40 rounds of 5 steps, and 5 of them lie, the same in all arms of a seed.

Each rule is run without liars and under six attacks: upside-down uploads, noise, ALIE,
inner-product manipulation, min-max (liars that see all honest uploads), flipped labels.

Score: the lowest accuracy over the attacks; beside it the accuracy under each, a tenth
where the model diverged. Every
rule has three settings to choose from, by that score on images that no seed sees: a rate
of the clients, or for rules with a bound in the unit of the uploads that bound. Which
attacks come is known while tuning, for all rules alike.

Controls: the mean, attacked; the mean on shuffled labels; the network, untrained.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.experiments.robust_rules import arms
from fedjax_fm.experiments.shared.digits import Digits, deal


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run robust_rules`; change one by `--set name=value`."""

    clients: int = 25
    liars: float = 0.2  # share of the clients
    alpha: float = 1.0
    test: int = 300
    root: int = 60  # images of the server
    width: int = 64
    rounds: int = 40
    local_steps: int = 5
    batch_size: int = 10
    rate: float = 0.1  # of rules that choose a bound
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    bounds: tuple[float, ...] = (0.1, 0.3, 1.0)
    steps: tuple[float, ...] = (0.001, 0.003, 0.01)  # of the sign majority
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes: dict[str, Any] = {"clients": 6, "width": 8, "rounds": 2, "seeds": (0,)}
        few: dict[str, Any] = {"rates": (0.1,), "bounds": (0.3,), "steps": (0.01,)}
        return dataclasses.replace(self, **sizes, **few)


def data(config: Config, seed: int, split: str) -> Digits:
    """Deals the split's images."""
    sizes: dict[str, Any] = {
        "clients": config.clients,
        "test": config.test,
        "public": config.root,
        "smallest": 8,
    }
    return deal(seed, split, alpha=config.alpha, **sizes)


GRIDS = {"rate": "rates", "bound": "bounds", "step": "steps"}
RULES = [
    study.Arm(name, arms.ruled(name), one.label, {one.chooses: GRIDS[one.chooses]})
    for name, one in arms.RULES.items()
]
STUDY = study.Study(
    question="What does each robust rule keep where a fifth of the clients lie?",
    expected="the mean is broken by inner products and by noise; every robust rule but "
    "the norm bound lies above it in the worst case; ALIE and min-max cost medians and "
    "Krum more than upside-down uploads do; without liars Krum and FLTrust pay most "
    "(EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.percent("accuracy", "lowest under attack"),
    scores=tuple(study.percent(name, name.replace("_", " ")) for name in arms.CASES),
    arms=(
        *RULES,
        study.Arm("shuffled", arms.ruled("mean", shuffle=True), like="mean"),
        study.Arm("untrained", arms.untrained, "untrained"),
    ),
    comparisons=study.against("mean", RULES),
    controls=[
        study.Control("shuffled", "median"),
        study.Control("untrained", "median"),
    ],
)
