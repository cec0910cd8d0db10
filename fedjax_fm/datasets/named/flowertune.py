"""FlowerTune's four tasks.

References:
  Gao et al. (2025). FlowerTune: A Cross-Domain Benchmark for Federated Fine-Tuning of
  Large Language Models. arXiv 2506.02961.
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
from fedjax_fm.datasets.named.stand_ins import questions
from fedjax_fm.datasets.named.templates import TEMPLATES

CITATION = "Gao et al. (2025). FlowerTune. arXiv 2506.02961."


def _task(
    name: str,
    hub_id: str,
    parse: Parser,
    stand_in: StandIn,
    *,
    clients: int,
    share: float,
    n_rows: int,
    metric: tuple[str, ...],
    columns: tuple[str, ...] = ("instruction", "input", "output"),
) -> Benchmark:
    """One task; what all four share stands here."""
    settings = Settings(
        source="authors' code (benchmarks/flowertune-llm)",
        model="mistralai/Mistral-7B-v0.3, 4 bit",
        clients=clients,
        cohort=share,
        rounds=200,
        local_steps=10,
        batch_size=16,
        length=512,
        lr=5e-5,
        lr_last=1e-6,
        rank=32,
        alpha=64,
        note="cosine over rounds; loss on the response alone",
    )
    return Benchmark(
        name=f"flowertune/{name}",
        title=f"FlowerTune, {name}",
        hub=Hub(id=hub_id, columns=columns),
        columns=("messages",),
        parse=parse,
        stand_in=stand_in,
        partition=Partition("IidPartitioner", {"num_partitions": clients}),
        held=Held("rows", 0.02, ours=True),
        settings=settings,
        metric=metric,
        citation=CITATION,
        rows=n_rows,
        template=TEMPLATES["flowertune"],
    )


BENCHMARKS = (
    _task(
        "general",
        "flwrlabs/alpaca-gpt4",
        rows.each(rows.instruction_alone),
        questions.general,
        clients=20,
        share=0.1,
        n_rows=52_002,
        metric=("MMLU STEM", "MMLU social sciences", "MMLU humanities"),
        columns=("instruction", "output"),  # `input` is there, and is not read
    ),
    _task(
        "finance",
        "flwrlabs/fingpt-sentiment-train",
        rows.each(rows.instruction_and_input),
        questions.finance,
        clients=50,
        share=0.1,
        n_rows=76_772,
        metric=("accuracy on FPB", "accuracy on FiQA", "accuracy on TFNS"),
    ),
    _task(
        "medical",
        "flwrlabs/medical-meadow-medical-flashcards",
        rows.each(rows.input_alone),
        questions.medical,
        clients=20,
        share=0.1,
        n_rows=33_955,
        metric=("PubMedQA", "MedMCQA", "MedQA", "CareQA"),
        columns=("input", "output"),  # `instruction` is there, and is not read
    ),
    _task(
        "code",
        "flwrlabs/code-alpaca-20k",
        rows.each(rows.instruction_and_input),
        questions.code,
        clients=10,
        share=0.2,
        n_rows=20_022,
        metric=("pass@1 on MBPP", "on HumanEval", "on MultiPL-E (JS, C++)"),
    ),
)
