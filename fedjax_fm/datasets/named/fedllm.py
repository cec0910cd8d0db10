"""FedLLM-Bench: users' own instructions, conversations and preferences.

The authors give one archive outside of the hub, with a file {client: [rows]} for each
data set. `load(name, cache=FOLDER)` reads it from a folder.

References:
  Ye et al. (2024). FedLLM-Bench: Realistic Benchmarks for Federated Learning of Large
  Language Models. arXiv 2406.04845.
"""

from __future__ import annotations

from fedjax_fm.datasets.named import rows
from fedjax_fm.datasets.named.benchmark import (
    Benchmark,
    Held,
    Hub,
    Parser,
    Partition,
    Settings,
    StandIn,
)
from fedjax_fm.datasets.named.stand_ins import chats
from fedjax_fm.datasets.named.templates import TEMPLATES

CITATION = "Ye et al. (2024). FedLLM-Bench. arXiv 2406.04845."
SOURCE = "authors' code (training_scripts)"


def _set(
    name: str,
    title: str,
    settings: Settings,
    stand_in: StandIn,
    *,
    n_rows: int,
    metric: tuple[str, ...],
    parse: Parser | None = None,
    read: tuple[str, ...] = ("client", "instruction", "response"),
    columns: tuple[str, ...] = ("messages",),
    template: str = "openfedllm",
    checked: bool = True,
) -> Benchmark:
    """One data set; what all five share stands here."""
    return Benchmark(
        name=f"fedllm/{name}",
        title=title,
        hub=Hub(id=None, columns=read, checked=checked),
        columns=columns,
        parse=parse or rows.each(rows.instruction_response),
        stand_in=stand_in,
        partition=Partition("NaturalIdPartitioner", {"partition_by": "client"}),
        held=Held("rows", 0.02, ours=True),
        settings=settings,
        metric=metric,
        citation=CITATION,
        rows=n_rows,
        n_clients=settings.clients or 0,
        template=TEMPLATES[template],
    )


BENCHMARKS = (
    _set(
        "aya",
        "Fed-Aya: annotators of eight languages",
        Settings(
            source=SOURCE,
            model="Llama-2-7b, 8 bit",
            clients=38,
            cohort=4,
            rounds=200,
            local_steps=10,
            batch_size=4,
            accumulation=4,
            length=1024,
            lr=2e-5,
            lr_last=1e-6,
            rank=16,
            alpha=32,
            dropout=0.05,
            unverified=("model",),
            note="rows is a rounded number; cosine over rounds",
        ),
        chats.sums,
        n_rows=25_000,
        metric=("judge for each of eight languages",),
    ),
    _set(
        "chatbot-it",
        "Fed-ChatbotIT: annotators of chatbot conversations",
        Settings(
            source=SOURCE,
            model="Llama-2-7b, 8 bit",
            clients=237,
            cohort=10,
            rounds=100,
            local_steps=5,
            batch_size=4,
            accumulation=4,
            length=1024,
            lr=2e-5,
            lr_last=1e-6,
            rank=16,
            alpha=32,
            dropout=0.05,
            unverified=("model",),
            note="cosine over rounds",
        ),
        chats.lists,
        n_rows=6_166,
        metric=("MT-bench", "Vicuna bench", "own test set, judged"),
    ),
    _set(
        "wildchat-single",
        "Fed-WildChat, first turns",
        Settings(
            source=SOURCE,
            model="Llama-2-7b, 8 bit",
            clients=100,
            cohort=5,
            rounds=100,
            local_steps=10,
            batch_size=4,
            accumulation=4,
            length=1024,
            lr=2e-5,
            lr_last=1e-6,
            rank=16,
            alpha=32,
            dropout=0.05,
            unverified=("model",),
            note="rows is a rounded number; the script with privacy has 160 steps of "
            "batch 1",
        ),
        chats.topics,
        n_rows=53_000,
        metric=("judge",),
    ),
    _set(
        "wildchat-multi",
        "Fed-WildChat, several turns",
        Settings(
            source=SOURCE,
            model="Llama-2-7b, 8 bit",
            clients=50,
            cohort=3,
            rounds=100,
            local_steps=10,
            batch_size=4,
            accumulation=4,
            length=2048,
            lr=2e-5,
            lr_last=1e-6,
            rank=16,
            alpha=32,
            dropout=0.05,
            unverified=("model",),
            note="the loss is on every answer; the published code masks by counted "
            "tokens and drops what does not add up",
        ),
        chats.several_turns,
        n_rows=15_406,
        metric=("MT-bench, two turns",),
        parse=rows.each(rows.turns),
        read=("client", "conversations"),
        template="vicuna",
    ),
    _set(
        "chatbot-pa",
        "Fed-ChatbotPA: preferences of chatbot users",
        Settings(
            source=SOURCE,
            model="Alpaca-7B, 8 bit",
            clients=747,
            cohort=10,
            rounds=200,
            batch_size=8,
            accumulation=1,
            length=512,
            lr=1e-4,
            lr_last=1e-5,
            rank=8,
            alpha=16,
            dropout=0.05,
            unverified=("batch_size", "accumulation"),
            note="DPO with beta 0.1; a client's steps are three epochs over the run, "
            "spread over its expected rounds; the script says batch 1 and 8 "
            "accumulated, the same 8 rows a step",
        ),
        chats.preferences,
        n_rows=9_508,
        metric=("judge", "pair accuracy"),
        parse=rows.each(rows.preference),
        read=("client", "instruction", "chosen", "rejected"),
        columns=("prompt", "chosen", "rejected"),
        checked=False,  # names of the columns were not seen
    ),
)
