"""What are masks over random weights worth, and what do they cost on the wire?

The 1797 handwritten digits of scikit-learn (Alpaydin and Kaynak, 1998). A quarter is
for tuning; of the rest, dealt anew for every seed, 300 are the test and 20 clients have
the others, by a Dirichlet partition over the label (alpha 0.3). A multi-layer
perceptron without biases, 84,480 weights; 10 clients a round, 3 epochs each, 50 rounds.
The clients' rate (Adam on scores, SGD for FedAvg) is chosen for FedPM, for its sparse
start and for FedAvg.

Score: accuracy of the mean probabilities of three drawn networks, as the authors test.
Besides: that of theta > 1/2, the mean of single draws, and what the uploads of one more
round would cost in bits a parameter, with the model of the coder: by entropy and by an
arithmetic coder, one law for all or one for each layer, or the law that both ends know,
theta.

Controls: FedPM that never learns, FedPM on shuffled labels, the largest class.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.fedpm.masks import masks, trained
from fedjax_fm.experiments.shared.controls import largest_class
from fedjax_fm.experiments.shared.digits import Digits, deal
from fedjax_fm.study import arm_of, percent


@dataclass(frozen=True)
class Config:
    """Settings."""

    clients: int = 20
    alpha: float = 0.3
    test: int = 300
    width: int = 256
    rounds: int = 50
    epochs: int = 3
    batch_size: int = 16
    grid: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # the clients' learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(self, width=64, rounds=3, grid=(0.3,), seeds=(0, 1))


def data(config: Config, seed: int, split: str) -> Digits:
    """Deals the split's images."""
    sizes = {"clients": config.clients, "test": config.test}
    return deal(seed, split, alpha=config.alpha, **sizes)


GRID = {"learning_rate": "grid"}
SOFT = "FedPM, softening 0.01 (authors' code)"
RESET = "FedPM, prior reset every 2 rounds"
VARIANTS = (
    arm_of("sparse", masks, "FedPM, sparse start", GRID, start=-2.0),
    arm_of("softening", masks, SOFT, like="fedpm", softening=0.01),
    arm_of("reset", masks, RESET, like="fedpm", reset_every=2),
)
METHODS = (arm_of("fedpm", masks, "FedPM", GRID), *VARIANTS)
CONTROLS = (
    arm_of("never_learns", masks, "FedPM that never learns", rate=0.0),
    study.shuffled(METHODS[0]),
    arm_of("largest_class", largest_class, "the largest class"),
)
BITS = (
    ("entropy", ""),
    ("coded", ""),
    ("entropy by layer", ""),
    ("coded by layer", ""),
    ("coded given theta", ""),
    ("all rounds", "entropy, all rounds"),
)
STUDY = study.Study(
    question="What is a network worth whose weights nobody trained, and what do its masks "
    "cost on the wire?",
    expected="FedPM near FedAvg at less than one bit a parameter; better with its prior "
    "reset every 2 rounds, as half of the clients take part; theta > 1/2 below "
    "the drawn networks",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*METHODS, arm_of("fedavg", trained, "FedAvg, 32 bits", GRID), *CONTROLS),
    comparisons=[*study.against("fedpm", VARIANTS), *study.against("fedavg", METHODS)],
    controls=[study.Control(control.name, "fedpm") for control in CONTROLS],
    scores=(
        percent("threshold", "theta > 1/2"),
        percent("one draw", "single draws"),
        study.Score("ones", "share of ones", digits=2),
        *(
            study.Score(name, label, "bits", highest=False, digits=3)
            for name, label in BITS
        ),
    ),
)
