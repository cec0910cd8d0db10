"""What the quickstart does, in numbers."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run quickstart`; change one by `--set name=value`."""

    # Population
    clients: int = 64  # clients that train; validation and held-out clients come on top
    validation_clients: int = 8  # tuning looks at these only
    held_out_clients: int = 8  # never train; what the model is worth to a newcomer
    partition: Literal["domain", "natural", "dirichlet", "iid"] = "domain"
    alpha: float = 0.3  # of the Dirichlet partition over the label
    test_fraction: float = 0.15  # of all documents, held out for the central test
    local_test_fraction: float = 0.2  # of a client's own sentences
    # Model
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 40  # tokens; longer sentences are cut
    rank: int = 8
    lora_alpha: float = 16.0
    targets: str = r"query|value"
    # Training
    rounds: int = 15
    cohort: int = 10  # clients a round
    local_steps: int = 4
    batch_size: int = 8
    learning_rate: float = 1e-2  # of the clients' Adam, federated arm
    uncompressed_learning_rate: float = 5e-3
    local_only_learning_rate: float = 5e-3
    centralised_learning_rate: float = 2e-3
    centralised_batch: int = 32
    # Uplink
    top_k: float = 0.1  # share of the entries that is sent
    bits: int = 4  # of each
    # Evaluation and size of the study
    eval_every: int = 3  # rounds between looks at the fixed subset of the validation clients' sentences
    eval_subset: int = 384  # sentences of it
    head_examples: int = 3072  # training sentences whose features the trained head sees
    seed: int = 0
    seeds: int = 1  # runs with seed, seed + 1, …, compared pair by pair

    def __post_init__(self):
        from fedjax_fm import checks  # here, as it imports JAX, which a list of studies shall not wait for

        whole = ("clients", "validation_clients", "held_out_clients", "rounds", "cohort", "local_steps", "batch_size")
        for name in (*whole, "eval_every", "eval_subset", "head_examples", "seeds", "centralised_batch", "rank"):
            checks.whole(name, getattr(self, name), least=1)
        checks.whole("max_length", self.max_length, least=3)  # [CLS], one token, [SEP]
        checks.whole("bits", self.bits, least=2, most=8)
        for name in ("alpha", "lora_alpha", *(name for name in vars(self) if name.endswith("learning_rate"))):
            checks.real(name, getattr(self, name), above=0)
        for name in ("test_fraction", "local_test_fraction"):
            checks.real(name, getattr(self, name), above=0, below=1)
        checks.real("top_k", self.top_k, above=0, most=1)
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"expected targets, a regular expression, got targets={self.targets!r}: {error}"
            ) from error
        if self.cohort > self.clients:
            raise ValueError(f"expected cohort <= clients, got cohort={self.cohort}, clients={self.clients}")
        checks.whole("seed", self.seed, least=0, most=2**32 - 1)

    def smoke(self) -> "Config":
        """A small run of the same kind, about a minute: to see that everything works, not what it is worth."""
        small = {"clients": 16, "validation_clients": 4, "held_out_clients": 4, "rounds": 4, "cohort": 4}
        return dataclasses.replace(
            self,
            **small,
            local_steps=2,
            max_length=24,
            eval_every=2,
            eval_subset=64,
            test_fraction=0.02,
            head_examples=256,
        )

    def full(self) -> "Config":
        """The study: longer, every training sentence for the head, three seeds; about an hour on two cores."""
        return dataclasses.replace(self, rounds=60, eval_every=6, head_examples=1_000_000, seeds=3)
