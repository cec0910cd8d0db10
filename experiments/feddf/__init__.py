"""What do clients learn from models of another architecture, by FedDF and by FedMD?

The 1797 handwritten digits of scikit-learn (Alpaydin and Kaynak, 1998). A quarter is
for tuning; of the rest, dealt anew for every seed, 270 are the test, 300 are public,
and 20 clients have the others, by a Dirichlet partition over the label (alpha 0.1).
Every other client has a perceptron (9,610 weights), the others two layers of
convolutions (6,090). 30 rounds.

FedDF: 10 clients a round, 5 epochs; the server distils 100 steps of 64 unlabelled
images (Adam with a cosine). Alone is the same without server steps: federated averaging
in each group. FedMD: models start from 100 public images with labels; all clients keep
their own, agree on 200 unlabelled ones a round, digest by mean absolute error, revisit
1 epoch. Alone: without digests. Each of the four chooses among nine settings: SGD's
rate by the server's rate, the digest's rate, or the epochs of those alone.

Score: accuracy on images of all classes, mean over the clients' models, half of them of
each architecture (with FedDF a client's model is its group's). Controls: teachers whose
answers are paired with other images, and untrained models.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.experiments.feddf.fusion import fusion
from fedjax_fm.experiments.feddf.models import NAMES
from fedjax_fm.experiments.feddf.parties import clients_alone, digest, start, untrained
from fedjax_fm.experiments.shared.digits import Digits, deal
from fedjax_fm.study import arm_of, percent


@dataclass(frozen=True)
class Config:
    """Settings."""

    clients: int = 20
    alpha: float = 0.1
    test: int = 270
    public: int = 300  # a third of them with labels; FedMD agrees on two thirds a round
    rounds: int = 30
    batch_size: int = 16
    server_steps: int = 100
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)  # of the clients' SGD
    server_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    digest_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    group_epochs: tuple[int, ...] = (1, 5, 20)  # of groups alone
    client_epochs: tuple[int, ...] = (1, 3, 10)  # of clients alone
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        rates = {"rates": (0.3,), "server_rates": (3e-3,), "digest_rates": (1e-3,)}
        rounds = {"rounds": 2, "server_steps": 10, "seeds": (0, 1)}
        epochs = {"group_epochs": (5,), "client_epochs": (1,)}
        return dataclasses.replace(self, **rates, **rounds, **epochs)


def data(config: Config, seed: int, split: str) -> Digits:
    """Deals the split's images."""
    sizes = {"clients": config.clients, "test": config.test, "public": config.public}
    return deal(seed, split, alpha=config.alpha, smallest=4, **sizes)


# What each of the four chooses: SGD's rate by another setting.
GROUPS = {"rate": "rates", "epochs": "group_epochs"}
SERVER = {"rate": "rates", "server_rate": "server_rates"}
CLIENTS = {"rate": "rates", "epochs": "client_epochs"}
DIGEST = {"rate": "rates", "digest_rate": "digest_rates"}
ALONE = {"epochs": None, "distil": False}
PLAIN = {"distil": False, "like": "feddf"}
MEAN: dict[str, Any] = {"average": "probabilities", "like": "feddf"}
SHUFFLED = {"shuffle": True, "like": "feddf"}
ARMS = (
    arm_of("groups_alone", fusion, "each group alone", GROUPS, **ALONE),
    arm_of("feddf", fusion, "FedDF", SERVER),
    arm_of("undistilled", fusion, "FedDF without distillation", **PLAIN),
    arm_of("probabilities", fusion, "FedDF, mean probabilities", **MEAN),
    arm_of("clients_alone", clients_alone, "each client alone", CLIENTS),
    arm_of("fedmd", digest, "FedMD", DIGEST),
    arm_of("start", start, "FedMD's start, no rounds", like="fedmd"),
    arm_of("shuffled_teachers", fusion, "FedDF, shuffled teachers", **SHUFFLED),
    arm_of("untrained", untrained, "nobody trained"),
)
STUDY = study.Study(
    question="What do clients learn from others whose models have another architecture, "
    "by FedDF and by FedMD?",
    expected="FedDF above each group alone and above mean probabilities; FedMD above each "
    "client alone and above its start",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=ARMS,
    comparisons=(
        ("feddf", "groups_alone"),
        ("feddf", "undistilled"),
        ("probabilities", "groups_alone"),
        ("probabilities", "feddf"),
        ("shuffled_teachers", "undistilled"),
        ("fedmd", "clients_alone"),
        ("fedmd", "start"),
    ),
    controls=(
        study.Control(
            "shuffled_teachers",
            "feddf",
            "What helps is not what the teachers say of an image.",
        ),
        study.Control("untrained", "fedmd"),
        study.Control("untrained", "groups_alone"),
    ),
    scores=[percent(name) for name in NAMES],
)
