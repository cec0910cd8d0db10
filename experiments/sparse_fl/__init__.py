"""What do sparse federated methods give for their bytes and their time, at Dirichlet 0.1?

The 1797 digits of scikit-learn; a quarter is for tuning, of the rest 300 are the common
test, 100 the server's, and 20 clients have the others, by a Dirichlet partition over the
label (alpha 0.1); a quarter of each client's is its own test. A perceptron
64-256-256-10 without biases, 84,480 weights; 10 clients a round, 60 rounds of 5 steps.

FedAvg; PruneFL, its first stage at one client; LotteryFL down to a tenth; FedTiny at one
per cent, from a network that the server pretrained; FedPM; HeteroFL and FjORD where half
of the clients carry a quarter of the width. All but the last two are masked, not faster:
time is estimated, 50 ms a round and 64 us a weight that travels both ways.

Score: accuracy on the common test after all rounds; arms "own" are judged by the clients'
models on their own tests; "in PruneFL's time" stops when its seconds are spent.

Controls: FedAvg on shuffled labels; the network, untrained.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.experiments.sparse_fl import arms, widths
from fedjax_fm.experiments.sparse_fl.dealt import Dealt, dealt
from fedjax_fm.experiments.sparse_fl.tiny import tiny


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run sparse_fl`; change one by `--set name=value`."""

    clients: int = 20
    cohort: int = 10
    alpha: float = 0.1
    test: int = 300
    public: int = 100
    width: int = 256
    rounds: int = 60
    local_steps: int = 5
    batch_size: int = 20
    every: int = 10  # rounds between PruneFL's masks
    ticket: float = 0.1  # density at which LotteryFL stops
    tiny: float = 0.01  # FedTiny's density
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)  # of SGD
    score_rates: tuple[float, ...] = (0.03, 0.1, 0.3)  # of Adam, on FedPM's scores
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small: dict[str, Any] = {
            "clients": 6,
            "cohort": 3,
            "width": 16,
            "rounds": 2,
            "every": 1,
        }
        few: dict[str, Any] = {
            "rates": (0.1,),
            "score_rates": (0.1,),
            "seeds": (0,),
            "tiny": 0.1,
        }
        return dataclasses.replace(self, **small, **few)


def data(config: Config, seed: int, split: str) -> Dealt:
    """Deals the split's images."""
    sizes: dict[str, Any] = {
        "clients": config.clients,
        "test": config.test,
        "public": config.public,
    }
    return dealt(seed, split, alpha=config.alpha, **sizes)


GRID = {"rate": "rates"}
METHODS = (
    study.Arm("fedavg", arms.fedavg(), "FedAvg", GRID),
    study.Arm("prunefl", arms.prunefl, "PruneFL", GRID),
    study.Arm("lotteryfl", arms.lotteryfl, "LotteryFL", GRID),
    study.Arm("fedtiny", tiny(8), "FedTiny, 1 %", GRID),
    study.Arm("one_percent", tiny(1), "largest 1 %, fixed", GRID),
    study.Arm("fedpm", arms.fedpm, "FedPM", {"rate": "score_rates"}),
    study.Arm("heterofl", widths.by_width("heterofl"), "HeteroFL", GRID),
    study.Arm("fjord", widths.by_width("fjord"), "FjORD", GRID),
    study.Arm("narrow", arms.fedavg(widths.NARROW), "FedAvg, a quarter as wide", GRID),
)
OTHERS = (
    study.Arm(
        "fedavg_in_time", arms.fedavg_in_time, "FedAvg in PruneFL's time", like="fedavg"
    ),
    study.Arm("fedavg_own", arms.on_own(arms.fedavg()), "FedAvg, own", like="fedavg"),
    study.Arm(
        "lotteryfl_own", arms.on_own(arms.lotteryfl), "LotteryFL, own", like="lotteryfl"
    ),
)
CONTROLS = (
    study.Arm("shuffled", arms.fedavg(shuffle=True), "shuffled labels", like="fedavg"),
    study.Arm("untrained", arms.untrained, "untrained"),
)
STUDY = study.Study(
    question="What do sparse federated methods give for their bytes and their time?",
    expected="PruneFL above FedAvg in the same estimated time; LotteryFL above FedAvg on "
    "the clients' own tests; FedTiny above fixed magnitudes at 1 %; HeteroFL and FjORD "
    "above the widest model that all can carry. Masked, not faster; HeteroFL and FjORD "
    "compute less (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(
        study.Score("own", "own tests", unit="%", scale=100.0),
        study.Score("density", digits=3),
    ),
    arms=(*METHODS, *OTHERS, *CONTROLS),
    comparisons=[
        ("prunefl", "fedavg_in_time"),
        ("lotteryfl_own", "fedavg_own"),
        ("fedtiny", "one_percent"),
        ("heterofl", "narrow"),
        ("fjord", "narrow"),
        ("fedpm", "fedavg"),
    ],
    controls=[study.Control(control.name, "fedavg") for control in CONTROLS],
)
