"""What the study does, in numbers."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Settings; `smoke()` is a small run of the same kind."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    targets: str = r"^layer\.(intermediate|output)\.dense$"  # the feed-forward network's two matrices
    trained_layers: int = 1  # the last ones; what comes before is computed once
    max_length: int = 20  # tokens
    pool: int = 1200  # sentences a domain, of which a share is for tuning only
    tuning_share: float = 0.4
    ranks: tuple[int, ...] = (2, 4, 8, 16, 2, 4, 8, 16)  # of the clients, two a domain
    scaling: float = 2.0  # alpha / r
    train: int = 80  # sentences of a client
    test: int = 100  # a client's own, of other documents
    gamma: float = 0.99  # HetLoRA: what a client keeps of its rank when it prunes
    tail_penalty: float = 0.01  # HetLoRA: lambda of its regulariser
    public: int = 512  # sentences
    first_rate: float = 1e-3  # of the full step on them that Fed-SB starts from
    local_steps: int = 4
    batch_size: int = 8
    budget_rounds: int = 10  # the budget is what FedIT sends, both ways, in so many rounds
    most_rounds: int = 30  # of the cheapest rules, which stop before they have spent the budget
    tuning_rounds: int = 5  # likewise, for the choice of learning rates
    grid: tuple[float, ...] = (4e-3, 16e-3, 64e-3, 256e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)  # fixed before the run

    def smoke(self) -> "Config":
        """Does it work?"""
        return dataclasses.replace(
            self,
            pool=220,
            train=24,
            test=10,
            budget_rounds=2,
            most_rounds=4,
            tuning_rounds=1,
            grid=(16e-3,),
            seeds=(0, 1),
        )
