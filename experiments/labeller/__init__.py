"""Can a foundation model label the texts of small clients, for a student that they can run?

Rated sentences of four domains. A server has 600 labelled ones; 24 clients have 150 each
without labels. The teacher is MiniLM, frozen, with a head that the server trains on its
labels; it travels to each client, labels the texts there, and is not needed again. The
student is a bag of words: 4,096 embeddings of 16, their mean, a linear layer. Clients
train it by FedAvg on what the teacher said, never on their texts' true labels:

    taught    the teacher's classes            true      the clients' true labels
    soft      the teacher's probabilities      server    the server's labels alone, no client

All students take as many rounds and steps, each with three rates, chosen on documents
that no seed uses. The server's student has a client's steps, of one client.

Score: accuracy on sentences of other documents. Bytes: those of the rounds, and the
teacher once to each client.

Controls: the teacher's labels permuted among all clients; no training.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.labeller.students import at_server, federated, untrained
from fedjax_fm.experiments.labeller.texts import data, of_teacher
from fedjax_fm.study import arm_of, percent


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run labeller`; change one by `--set name=value`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 24
    per_domain: int = 6  # clients of a domain
    server: int = (
        1  # as many sentences of a domain at the server as so many clients have
    )
    train: int = 150  # sentences of a client
    test: int = 20
    teacher_rate: float = 0.01  # Adam's
    teacher_steps: int = 100  # with all labelled sentences
    buckets: int = 4096  # of words
    width: int = 16
    rounds: int = 30
    local_steps: int = 5
    batch_size: int = 8
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)  # Adam's, of the student
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"per_domain": 1, "server": 1, "train": 6, "test": 4, "max_length": 8}
        walk = {"rounds": 1, "local_steps": 1, "batch_size": 4, "teacher_steps": 5}
        student = {"buckets": 64, "width": 2, "rates": (1e-2,), "seeds": (0,)}
        return dataclasses.replace(self, **small, **walk, **student)


GRID = {"rate": "rates"}
TAUGHT = arm_of("taught", federated, "student of the teacher's classes", GRID)
ARMS = (
    TAUGHT,
    arm_of("soft", federated, "student of its probabilities", GRID, labels="soft"),
    arm_of("true", federated, "student of true labels", GRID, labels="true"),
    arm_of("server", at_server, "student of the server's labels", GRID),
    arm_of("teacher", of_teacher, "the teacher"),
)
STUDY = study.Study(
    question="Can a foundation model label the texts of small clients, for a student "
    "that they can run?",
    expected="the taught student above the server's by three points or more, and within "
    "three points of that of true labels; the teacher above all students (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(percent("agreement", "says what the teacher says"),),
    arms=(
        *ARMS,
        study.shuffled(TAUGHT, "taught, labels permuted"),
        arm_of("untrained", untrained, "student before training", like="taught"),
    ),
    comparisons=[
        ("taught", "server"),
        ("taught", "true"),
        ("soft", "taught"),
        ("teacher", "taught"),
    ],
    controls=(
        study.Control("shuffled", "taught"),
        study.Control("untrained", "taught"),
    ),
)
