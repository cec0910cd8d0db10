"""Which federated optimiser suits LoRA, on clients that are alike and that are not?

FedLLM-Bench's seven methods, FedNova and FedDyn. Rated sentences of four domains on 24
clients, by a Dirichlet partition over the label (alpha 0.1 and 1) and IID. MiniLM's features are
computed once; on them stands a layer of 64 units whose random kernel is frozen and has a
LoRA of rank 8, and a head that is trained. 6 clients a round, 40 rounds of 5 steps of 8.

Each method gets the same budget: four rates of the clients times three of the server (of
FedDyn its alpha), all lanes of one compiled sweep on documents that no seed of the study
sees. Rates are chosen by the loss on the sweep's test; FedAdam's kind by smaller server
rates, as its steps do not shrink with the gradients.

Score: accuracy on the test, of all domains; alpha 0.1 decides. Controls: shuffled
labels; the model before training.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.optimisers.clients import data
from fedjax_fm.experiments.optimisers.training import (
    METHODS,
    SCORES,
    trained,
    untrained,
)
from fedjax_fm.study import arm_of


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run optimisers`; change one by `--set name=value`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 24
    sentences: int = 2400  # of both splits together
    clients: int = 24
    cohort: int = 6
    test_share: float = 0.25
    hidden: int = 64
    rank: int = 8
    rounds: int = 40
    local_steps: int = 5
    batch_size: int = 8
    client_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    server_rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    adaptive_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    alphas: tuple[float, ...] = (0.03, 0.1, 0.3)  # FedDyn's
    partitions: tuple[str, ...] = ("0.1", "1", "iid")
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes = {"sentences": 240, "clients": 6, "cohort": 2, "rounds": 2}
        rates = {"client_rates": (0.1,), "server_rates": (1.0,), "alphas": (0.1,)}
        rates |= {"adaptive_rates": (0.01,)}
        few = {"partitions": ("0.1",), "seeds": (0,), "max_length": 8}
        return dataclasses.replace(self, **sizes, **rates, **few)


ARMS = [arm_of(name, trained, method=name) for name in METHODS]
STUDY = study.Study(
    question="Which federated optimiser suits LoRA, on clients that differ?",
    expected="IID: no difference but for FedAvgM and the adaptive servers, which are "
    "faster by a point or two in 40 rounds; alpha 1 the same; alpha 0.1: SCAFFOLD, FedDyn "
    "and the adaptive servers above FedAvg by two points or more, FedProx and FedNova "
    "equal to it, as all make equal work",
    config=Config,
    data=data,
    primary=SCORES["0.1"],
    scores=(SCORES["1"], SCORES["iid"]),
    arms=(
        *ARMS,
        study.shuffled(ARMS[0]),
        arm_of("untrained", untrained, "before training"),
    ),
    comparisons=study.against("fedavg", ARMS),
    controls=(
        study.Control("shuffled", "fedavg"),
        study.Control("untrained", "fedavg"),
    ),
)
