"""What the study of a generative model does, in numbers."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run generate`; change one by `--set name=value`."""

    # Population: a speaking role is a client, as in the FedAvg paper; its group is the play
    data: Literal["shakespeare", "docstrings"] = "shakespeare"
    clients: int = 64  # that train
    min_texts: int = 20  # speeches of a role, to be a client
    max_texts: int = 200  # of a client that are used
    validation_groups: int = 4  # the same in every study: learning rates are chosen on them, and nothing else uses them
    held_out_groups: int = 6  # plays all of whose roles stay unseen
    held_out_clients: int = 48  # roles of those plays that are scored
    local_test_fraction: float = 0.2  # of a client's own texts, its last ones
    score: Literal["test", "validation"] = "test"  # which groups' clients are the unseen ones
    # Model
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    template: Literal["chat", "alpaca", "alpaca_short"] = "chat"  # chat: the model's own
    dtype: Literal["float32", "bfloat16"] = "float32"
    frozen: Literal["dense", "q4_1"] = "dense"
    max_length: int = 128  # tokens of a prompt and its answer; longer ones are cut
    row_length: int = 256  # tokens of a training row, into which texts are packed
    rank: int = 8
    lora_alpha: float = 16.0
    targets: str = r"q_proj|v_proj"
    # Training
    rounds: int = 8
    cohort: int = 8  # clients a round
    local_steps: int = 3
    batch_size: int = 1  # rows, of about three speeches each
    learning_rate: float = 1e-2  # of the clients' Adam, cosine over rounds down to a tenth
    centralised_learning_rate: float = 1e-2
    local_learning_rate: float = 3e-3
    clip_norm: float = 1.0  # of a batch's gradient
    weighting: Literal["tokens", "examples"] = "tokens"
    bits: int = 8  # of the uplink's codes
    local_only_clients: int = 8  # clients that are trained alone
    # Evaluation
    eval_every: int = 4
    eval_rows: int = 3  # texts of a client that are scored
    forgetting_rows: int = 48  # modern sentences that no client has
    new_tokens: int = 40
    rouge_prompts: int = 0  # of unseen clients, answered greedily and scored by ROUGE-L
    seed: int = 0
    seeds: int = 1

    def __post_init__(self):
        positive = ("clients", "held_out_groups", "held_out_clients", "rounds", "cohort", "local_steps", "batch_size")
        more = ("seeds", "eval_every", "eval_rows", "forgetting_rows", "new_tokens", "local_only_clients")
        from fedjax_fm import checks  # here, as it imports JAX, which a list of studies shall not wait for

        for name in (*positive, *more, "validation_groups", "max_length", "rank"):
            checks.whole(name, getattr(self, name), least=1)
        checks.whole("bits", self.bits, least=2, most=8)
        for name in ("lora_alpha", "clip_norm", *(name for name in vars(self) if name.endswith("learning_rate"))):
            checks.real(name, getattr(self, name), above=0)
        checks.real("local_test_fraction", self.local_test_fraction, above=0, below=1)
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"expected targets, a regular expression, got targets={self.targets!r}: {error}"
            ) from error
        checks.whole("seed", self.seed, least=0, most=2**32 - 1)
        if self.cohort > self.clients or self.local_only_clients > self.clients:
            raise ValueError(
                f"expected cohort and local_only_clients <= clients, got {self.cohort} and {self.local_only_clients}, "
                f"clients={self.clients}"
            )
        if self.min_texts < 5:
            raise ValueError(f"expected min_texts >= 5 (some to train on, some to test), got {self.min_texts}")
        if self.max_texts < self.min_texts:
            raise ValueError(f"expected max_texts >= min_texts, got {self.max_texts} < {self.min_texts}")
        if self.row_length < self.max_length:
            raise ValueError(
                f"expected row_length >= max_length, so that every text fits into a row, got {self.row_length} < "
                f"{self.max_length}"
            )
        if self.rouge_prompts < 0:
            raise ValueError(f"expected rouge_prompts >= 0, got {self.rouge_prompts}")

    def smoke(self) -> "Config":
        """A small run of the same kind, about two minutes: to see that everything works, not what it is worth."""
        small = {"clients": 8, "held_out_clients": 4, "rounds": 2, "cohort": 2, "local_steps": 1}
        return dataclasses.replace(
            self,
            **small,
            row_length=max(128, self.max_length),
            local_only_clients=2,
            eval_every=1,
            eval_rows=2,
            forgetting_rows=8,
            new_tokens=16,
            rouge_prompts=min(self.rouge_prompts, 4),
        )

    def full(self) -> "Config":
        """The study: longer and with three seeds; about an hour on two cores."""
        return dataclasses.replace(self, rounds=16, eval_every=4, seeds=3)


@dataclass(frozen=True)
class DocstringsConfig(Config):
    """Settings of `fedjax-fm run docstrings`: the same study with packages as clients and functions as texts."""

    data: Literal["shakespeare", "docstrings"] = "docstrings"
    clients: int = 20
    min_texts: int = 60
    max_texts: int = 100
    held_out_clients: int = 6
    template: Literal["chat", "alpaca", "alpaca_short"] = "alpaca"
    max_length: int = 256
    local_only_clients: int = 4
    eval_rows: int = 8
    rouge_prompts: int = 48
