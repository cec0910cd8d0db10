"""What is a model for each client worth where clients disagree?

Thirty-two clients, eight of each of four domains of rated sentences (tweets, product
reviews, film reviews, editorials), 40 training sentences each; every second client of a
domain calls good what the others call bad, so that no shared model can please all. Of
each domain two clients, one of either mind, take no part in training. MiniLM, whose first
five layers are frozen for all and computed once; LoRA of rank 8 on query and value of the
last one, and a head; 20 rounds of 4 SGD steps of 8 sentences, all of the 24 clients in
every round, as many steps for what is personal.

Score: accuracy of a client's own model on 15 sentences of its own, the mean over
clients that trained; before it nobody adapts but where the method says so (FedBABU,
Per-FedAvg, fine-tuned FedAvg). Beside it the worst tenth of clients, the spread between
them, the server's model, and the clients that took no part: each begins with the
server's model (of IFCA with the cluster of the lowest loss on its training sentences)
and takes 20 steps on those; of local training these steps alone.

Controls: local training on shuffled labels; and FedAvg, which must be worse than local
training, or the clients do not disagree in what is learned.
"""

import dataclasses
from dataclasses import dataclass

import fedjax_fm as ffm
from fedjax_fm import algorithms, study
from fedjax_fm.experiments.personal.clients import data
from fedjax_fm.experiments.personal.judging import trained
from fedjax_fm.experiments.personal.methods import (
    apfl,
    fedbabu,
    of_config,
    per_fedavg,
    tuned,
)
from fedjax_fm.study import arm_of, percent


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run personal`; change one by `--set name=value`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 24
    rank: int = 8
    per_domain: int = 8  # clients, every second one of the other mind
    new_per_domain: int = 2  # of them, that take no part; even
    train: int = 40  # sentences of a client
    test: int = 15
    rounds: int = 20
    tuning_rounds: int = 10
    local_steps: int = 4
    batch_size: int = 8
    own_steps: int = 20  # of a client that adapts a finished model
    penalty: float = 1.0  # Ditto's
    envelope: float = 15.0  # pFedMe's penalty
    inner_rate: float = 0.05  # Per-FedAvg's
    clusters: int = 2
    personal: str = "classifier"  # the part of FedPer, FedRep, FedBABU and FedALA
    grid: tuple[float, ...] = (0.03, 0.1, 0.3)  # learning rate of SGD
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes = {"max_length": 12, "per_domain": 4, "train": 8, "test": 6}
        rounds = {"rounds": 2, "tuning_rounds": 1, "local_steps": 2, "own_steps": 2}
        return dataclasses.replace(self, **sizes, **rounds, grid=(0.1,), seeds=(0, 1))


HEADS = {"personal": "personal"}
ROWS = (
    ("local", of_config(algorithms.local_only), "local only"),
    ("fedavg", of_config(ffm.fedavg), "FedAvg"),
    ("tuned", tuned, "FedAvg, fine-tuned"),
    ("fedper", of_config(algorithms.fedper, **HEADS), "FedPer"),
    ("fedrep", of_config(algorithms.fedrep, **HEADS), "FedRep"),
    ("fedbabu", fedbabu, "FedBABU"),
    ("ditto", of_config(algorithms.ditto, penalty="penalty"), "Ditto"),
    ("pfedme", of_config(algorithms.pfedme, penalty="envelope"), "pFedMe"),
    ("apfl", apfl, "APFL"),
    ("fedala", of_config(algorithms.fedala, **HEADS), "FedALA"),
    ("per_fedavg", per_fedavg, "Per-FedAvg (FO)"),
    ("ifca", of_config(algorithms.ifca, clusters="clusters"), "IFCA"),
)
PERSONAL = tuple(name for name, _, _ in ROWS[3:])
GRID = {"learning_rate": "grid"}
ARMS = [arm_of(name, trained, label, GRID, make=make) for name, make, label in ROWS]
STUDY = study.Study(
    question="What is a model for each client worth where clients disagree?",
    expected="FedAvg near chance and below local only; IFCA first, as two models please "
    "all; FedPer and FedRep above local only, as a head alone can turn an answer; Ditto, "
    "APFL and fine-tuned FedAvg near local only; Per-FedAvg's one step too short; the "
    "worst tenth in the same order; new clients best with IFCA",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(
        percent("worst", "worst tenth of clients"),
        percent("spread", "deviation between clients", highest=False),
        percent("shared", "the server's model"),
        percent("new", "clients that took no part, adapted"),
    ),
    arms=(*ARMS, study.shuffled(ARMS[0], "local, shuffled labels")),
    comparisons=[
        *((name, "local") for name in ("tuned", *PERSONAL)),
        *((name, "tuned") for name in PERSONAL),
    ],
    controls=(
        study.Control("shuffled", "local"),
        study.Control(
            "fedavg", "local", "The clients do not disagree in what is learned."
        ),
    ),
)
