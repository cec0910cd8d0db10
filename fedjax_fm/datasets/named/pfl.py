"""The three benchmarks of pfl-research for language models.

References:
  Granqvist et al. (2024). pfl-research: simulation framework for accelerating research
  in Private Federated Learning. arXiv 2404.06430.
"""

from __future__ import annotations

from fedjax_fm.datasets.named import rows
from fedjax_fm.datasets.named.benchmark import (
    Benchmark,
    Held,
    Hub,
    Partition,
    Settings,
)
from fedjax_fm.datasets.named.stand_ins import chats, questions
from fedjax_fm.datasets.named.templates import TEMPLATES

CITATION = "Granqvist et al. (2024). pfl-research. arXiv 2404.06430."


def _settings(clients: int, lr: float, note: str) -> Settings:
    """What the three share, with users, local rate and a remark of one."""
    return Settings(
        source="authors' code (benchmarks/llm)",
        model="TinyLlama-1.1B-intermediate-step-1195k",
        clients=clients,
        cohort=100,
        rounds=1000,
        local_epochs=1,
        batch_size=4,
        length=512,
        lr=lr,
        optimizer="SGD, updates clipped at 1.0",
        server="Adam 0.01, adaptivity 1e-4, cosine, 50 rounds of warm-up",
        rank=8,
        note=f"{note}; private: epsilon 2, delta 1e-6, clip 0.1, population 1e6, noise "
        "of a cohort of 5,000",
    )


_BY_USER = Partition("NaturalIdPartitioner", {"partition_by": "client"})
_USERS = Held("clients", 0.1)

BENCHMARKS = (
    Benchmark(
        name="pfl/alpaca",
        title="Alpaca by made-up users",
        hub=Hub(id="tatsu-lab/alpaca", columns=("instruction", "input", "output")),
        columns=("messages",),
        parse=rows.each(rows.alpaca),
        stand_in=questions.alpaca,
        partition=Partition("PoissonUsers", {"mean": 16.0}),
        held=_USERS,
        settings=_settings(2_934, 0.01, "users are those who train, 9 in 10"),
        metric=("loss on held-out users",),
        citation=CITATION,
        rows=52_002,
        template=TEMPLATES["alpaca"],
        licence="CC BY-NC 4.0",
    ),
    Benchmark(
        name="pfl/aya",
        title="The Aya collection by annotator",
        hub=Hub(
            id="CohereForAI/aya_dataset",
            columns=("inputs", "targets", "language", "user_id"),
            train="train+test",
        ),
        columns=("messages", "category"),
        parse=rows.aya,
        stand_in=chats.aya,
        partition=_BY_USER,
        held=_USERS,
        settings=_settings(
            4_089, 0.1, "question and answer have 255 tokens each and an end token"
        ),
        metric=("loss on held-out users",),
        citation=CITATION,
        rows=204_112,
        n_clients=4_089,
        most=rows.PSEUDO_USER,
        template=TEMPLATES["raw"],
        licence="Apache-2.0",
    ),
    Benchmark(
        name="pfl/oasst2",
        title="OpenAssistant by the author of the answer",
        hub=Hub(
            id="OpenAssistant/oasst2",
            columns=("message_id", "parent_id", "user_id", "text", "role", "lang"),
            train="train+validation",
        ),
        columns=("messages", "category"),
        parse=rows.oasst,
        stand_in=chats.oasst,
        partition=_BY_USER,
        held=_USERS,
        settings=_settings(
            12_870, 0.1, "question and answer have 255 tokens each and an end token"
        ),
        metric=("loss on held-out users",),
        citation=CITATION,
        # Answers, for the stand-in: the hub's 135,174 messages are not split by role.
        rows=64_350,
        n_clients=12_870,
        template=TEMPLATES["raw"],
        licence="Apache-2.0",
    ),
)
