"""What does federated LoRA bring, and what does compression cost?

Federated LoRA of a small encoder is compared with a head alone, with clients alone and
with one place that has all data. Rated sentences of four domains (tweets, Amazon
reviews, film reviews, editorials), label = sign of the mean rating. Whole documents are
split off for the central test, the rest is dealt to clients of one domain each; a share
of every client's own sentences tests it, and eight clients never train. MiniLM, LoRA on
query and value, a linear head on the mean of the tokens.

Both ways are compressed. Up: error feedback around the largest tenth of the entries in
4-bit codes. Down: 8-bit stochastic codes in buckets, without error feedback: the
message is the parameters themselves and receivers do not add messages up, so that
error feedback would only add the last message's error to this one's. `anchored` bills
an anchor to each of ten receivers drawn from 64, who seldom hold it: at 8 bits in all
it leaves 4 for each part and loses more. The error of plain codes is unbiased and never
reaches the server's own parameters, which are exact.

All arms see as many training sentences, repetitions counted; the head sees features
that are computed once. Scores: accuracy on the central test, where a client that is
alone judges a random share of it; on the clients' own sentences, with the worst tenth
of the clients; on clients that never train; and how many times fewer bytes travel than
without channels, up and both ways. The default's learning rates were chosen beforehand
on seed 1000; `--full` chooses them anew.

Controls: federated LoRA and the head, each on shuffled labels; the untrained model.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fedjax_fm import study
from fedjax_fm.experiments.quickstart.arms import (
    alone,
    centralised,
    federated,
    untrained,
)
from fedjax_fm.experiments.quickstart.clients import data
from fedjax_fm.study import arm_of, percent

GRID = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run quickstart`; change one by `--set name=value`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 40  # tokens; longer sentences are cut
    rank: int = 8
    targets: str = r"query|value"
    partition: Literal["domain", "dirichlet", "iid"] = "domain"
    alpha: float = 0.3  # of the Dirichlet partition over the label
    clients: int = 64  # that train; a quarter of them while tuning
    held_out_clients: int = 8  # that never train
    most_own: int = 8  # test sentences of a client
    most_test: int = 768  # of the central test
    cohort: int = 10
    rounds: int = 12
    tuning_rounds: int = 24
    local_steps: int = 4
    batch_size: int = 8
    centralised_batch: int = 32
    top_k: float = 0.1  # share of the entries that goes up
    bits_up: int = 4
    bits_down: int = 8
    head_examples: int = 48  # training sentences of a client that the head sees
    # Adam's learning rates; more than one are a grid.
    federated_rates: tuple[float, ...] = (1e-2,)
    uncompressed_rates: tuple[float, ...] = (5e-3,)
    local_rates: tuple[float, ...] = (5e-3,)
    centralised_rates: tuple[float, ...] = (2e-3,)
    head_rates: tuple[float, ...] = (2e-3,)
    every: int = 3  # rounds between evaluations on a part of the central test
    looked_at: int = 256  # sentences of that part
    seeds: tuple[int, ...] = (0,)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        clients = {"clients": 16, "held_out_clients": 4, "cohort": 4}
        sizes = {"max_length": 24, "most_own": 4, "most_test": 64, "looked_at": 32}
        short = {"rounds": 4, "tuning_rounds": 1, "local_steps": 2, "head_examples": 16}
        return dataclasses.replace(self, **clients, **sizes, **short)

    def full(self) -> "Config":
        """The study: longer, all sentences, one grid of learning rates, three seeds.

        Under two hours.
        """
        names = [field.name for field in dataclasses.fields(self)]
        rates = {name: GRID for name in names if name.endswith("_rates")}
        every = {"most_own": 10**6, "most_test": 10**6, "head_examples": 10**6}
        return dataclasses.replace(
            self, **rates, **every, rounds=60, every=6, seeds=(0, 1, 2)
        )


def tuned(name: str, run: Callable, label: str, **how: Any) -> study.Arm:
    """An arm whose learning rates are a setting."""
    return arm_of(name, run, label, {"learning_rate": f"{name}_rates"}, **how)


HEAD = {"head": True, "like": "head"}
ARMS = (
    tuned("federated", federated, "federated LoRA, compressed both ways"),
    tuned("uncompressed", federated, "federated LoRA, uncompressed", compressed=False),
    tuned("centralised", centralised, "centralised LoRA, equal samples"),
    tuned("head", centralised, "trained head on frozen features", head=True),
    tuned("local", alone, "local only, each client alone"),
)
CONTROLS = (
    study.shuffled(ARMS[0], "federated, shuffled labels"),
    arm_of("head_shuffled", centralised, "head, shuffled", **HEAD, shuffle=True),
    arm_of("untrained", untrained),
)

STUDY = study.Study(
    question="What does federated LoRA of a small encoder bring over a head alone and "
    "over clients alone, and what does compression cost?",
    expected="centralised and uncompressed first and level, compressed just below, then "
    "the head, clients alone last",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*ARMS, *CONTROLS),
    comparisons=[("federated", arm.name) for arm in ARMS[1:]],
    controls=(
        study.Control("shuffled", "federated"),
        study.Control("head_shuffled", "head"),
        study.Control("untrained", "federated"),
    ),
    scores=(
        percent("own", "clients' own sentences"),
        percent("worst", "worst tenth of the clients"),
        percent("held_out", "held-out clients"),
        study.Score("fewer_up", "times fewer bytes up"),
        study.Score("fewer_both", "times fewer bytes both ways"),
    ),
)
