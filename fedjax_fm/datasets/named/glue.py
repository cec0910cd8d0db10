"""GLUE and SNLI: each task alone, and as six papers deal them to clients.

Test labels of GLUE are secret, so that everybody tests on the validation split; MNLI's
is the matched one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedjax_fm.datasets.named import rows
from fedjax_fm.datasets.named.benchmark import (
    Benchmark,
    Held,
    Hub,
    Partition,
    Settings,
)
from fedjax_fm.datasets.named.stand_ins import labels

_GLUE = (
    "Wang et al. (2019). GLUE: A Multi-Task Benchmark and Analysis Platform for Natural "
    "Language Understanding. arXiv 1804.07461."
)


@dataclass(frozen=True)
class _Task:
    """One task: its columns of text, its sizes and its score."""

    title: str
    texts: tuple[str, ...]
    rows: int
    test_rows: int
    metric: tuple[str, ...] = ("accuracy",)
    classes: int = 2
    test: str = "validation"
    hub_id: str = "nyu-mll/glue"


TASKS = {
    "cola": _Task("grammatical or not", ("sentence",), 8_551, 1_043, ("MCC",)),
    "sst2": _Task("sentiment of film reviews", ("sentence",), 67_349, 872),
    "mrpc": _Task(
        "same meaning or not",
        ("sentence1", "sentence2"),
        3_668,
        408,
        ("accuracy", "F1"),
    ),
    "qqp": _Task(
        "same question or not",
        ("question1", "question2"),
        363_846,
        40_430,
        ("accuracy", "F1"),
    ),
    "stsb": _Task(
        "similarity from 0 to 5",
        ("sentence1", "sentence2"),
        5_749,
        1_500,
        ("Pearson", "Spearman"),
        classes=0,
    ),
    "mnli": _Task(
        "entailment, neutral or contradiction",
        ("premise", "hypothesis"),
        392_702,
        9_815,
        classes=3,
        test="validation_matched",
    ),
    "qnli": _Task(
        "does the sentence hold the answer", ("question", "sentence"), 104_743, 5_463
    ),
    "rte": _Task("entailment or not", ("sentence1", "sentence2"), 2_490, 277),
    "wnli": _Task(
        "does the pronoun mean this", ("sentence1", "sentence2"), 635, 71
    ),
    "snli": _Task(
        "entailment, neutral or contradiction",
        ("premise", "hypothesis"),
        550_152,
        10_000,
        classes=3,
        test="test",
        hub_id="stanfordnlp/snli",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Paper:
    """How a paper deals some tasks, and what it does differently for one of them."""

    tasks: tuple[str, ...]
    deal: Callable[[str], Partition]
    settings: Settings
    citation: str
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)


def _dirichlet(clients: int, alpha: float) -> Callable[[str], Partition]:
    """A Dirichlet partition over the label."""
    arguments = {"num_partitions": clients, "partition_by": "label", "alpha": alpha}
    partition = Partition(
        "DirichletPartitioner", {**arguments, "min_partition_size": 1}
    )
    return lambda task: partition


def _iid(clients: int) -> Callable[[str], Partition]:
    """Equal shards in random order."""
    partition = Partition("IidPartitioner", {"num_partitions": clients})
    return lambda task: partition


def _ffa(task: str) -> Partition:
    """Fixed shares of the labels for three clients."""
    shares = ((0.15, 0.85), (0.85, 0.15), (0.5, 0.5))
    note = ""
    if TASKS[task].classes == 3:
        shares = ((0.9, 0.05, 0.05), (0.05, 0.9, 0.05), (0.05, 0.05, 0.9))
        note = "one class 0.9: not seen in the authors' code"
    return Partition("LabelShares", {"shares": shares, "partition_by": "label"}, note)


PAPERS = {
    "fedsa": _Paper(
        tasks=("mnli", "sst2", "qnli", "qqp", "rte"),
        deal=_dirichlet(3, 0.5),
        settings=Settings(
            source="paper and authors' code",
            model="RoBERTa-large",
            clients=3,
            cohort=3,
            rounds=1000,
            local_steps=10,
            batch_size=128,
            length=128,
            lr=2e-2,
            optimizer="SGD",
            rank=8,
            alpha=16,
            note="lr: the author later advises 5e-3",
        ),
        citation="Guo et al. (2024). Selective Aggregation for Low-Rank Adaptation in "
        "Federated Learning. arXiv 2410.01463.",
    ),
    "ffa": _Paper(
        tasks=("mnli", "sst2", "qqp", "qnli"),
        deal=_ffa,
        settings=Settings(
            source="paper",
            model="RoBERTa-large",
            clients=3,
            cohort=3,
            rounds=1000,
            local_steps=10,
            batch_size=200,
            optimizer="SGD",
        ),
        citation="Sun et al. (2024). Improving LoRA in Privacy-preserving Federated "
        "Learning. arXiv 2403.12313.",
    ),
    "fedex": _Paper(
        tasks=("cola", "rte", "mrpc", "sst2", "qnli", "stsb"),
        deal=_iid(3),
        settings=Settings(
            source="authors' code",
            model="RoBERTa-base and -large",
            clients=3,
            cohort=3,
            rounds=50,
            local_epochs=3,
            batch_size=128,
            lr=1e-3,
            rank=4,
            alpha=8,
        ),
        citation="Singhal et al. (2024). FedEx-LoRA: Exact Aggregation for Federated and "
        "Efficient Fine-Tuning of Foundation Models. arXiv 2410.09432.",
    ),
    "frlora": _Paper(
        tasks=("qnli", "rte"),
        deal=_dirichlet(5, 0.5),
        settings=Settings(
            source="authors' code",
            model="RoBERTa-base",
            clients=5,
            cohort=5,
            rounds=200,
            local_steps=10,
            batch_size=32,
            length=256,
            lr=2e-5,
            optimizer="AdamW",
            rank=16,
            alpha=32,
            dropout=0.05,
            note="clients: 5 in the logs, 6 in the script",
        ),
        citation="Yan et al. (2025). Federated Residual Low-Rank Adaption of Large "
        "Language Models. ICLR.",
    ),
    "fedpetuning": _Paper(
        tasks=("rte", "mrpc", "cola", "qqp", "mnli", "qnli"),
        deal=_dirichlet(100, 1.0),
        settings=Settings(
            source="authors' code",
            model="RoBERTa-base",
            clients=100,
            cohort=10,
            rounds=100,
            local_epochs=1,
            batch_size=32,
            lr=5e-3,
            rank=8,
            note="lr and rank are the best of a grid, for LoRA",
        ),
        citation="Zhang et al. (2023). FedPETuning: When Federated Learning Meets the "
        "Parameter-Efficient Tuning Methods of Pre-trained Language Models. ACL "
        "Findings.",
        changes={key: {"lr": 1e-3, "rank": 16} for key in ("qqp", "mnli", "qnli")},
    ),
    "fedsvd-dp": _Paper(
        tasks=("sst2", "qnli", "qqp", "mnli", "snli"),
        deal=_dirichlet(6, 0.5),
        settings=Settings(
            source="authors' code",
            model="RoBERTa-large",
            clients=6,
            cohort=3,
            rounds=100,
            local_steps=10,
            batch_size=128,
            lr=0.5,
            optimizer="SGD",
            rank=8,
            alpha=8,
            dropout=0.05,
            note="epsilon 6, delta 1e-5, clip 2.0 for each example; the authors' rows of "
            "each client are in their repository",
        ),
        citation="Lee et al. (2025). FedSVD: Adaptive Orthogonalization for Private "
        "Federated Learning with LoRA. arXiv 2505.12805.",
    ),
}  # fmt: skip

# The clients of a task that no paper was named for.
_ALONE = Settings(
    source="this library's: no paper",
    clients=100,
    cohort=10,
    note="a Dirichlet partition for want of a paper; glue/PAPER/TASK has one",
)


def _more(number: int) -> dict[str, Any]:
    """The columns of a stand-in's row that are no text."""
    return {"label": number, "idx": 0}


def _benchmark(
    name: str, title: str, task: str, partition: Partition, settings: Settings, by: str
) -> Benchmark:
    """One task under one partition."""
    about = TASKS[task]
    is_score = about.classes == 0
    stand_in = labels.similarities
    if not is_score:
        stand_in = labels.classes(about.classes, about.texts, _more)
    columns = (
        ("text", "label") if len(about.texts) == 1 else ("text", "text_pair", "label")
    )
    return Benchmark(
        name=name,
        title=title,
        hub=Hub(
            id=about.hub_id,
            config=task if about.hub_id == "nyu-mll/glue" else None,
            columns=(*about.texts, "label"),
            test=about.test,
        ),
        columns=columns,
        parse=rows.texts(*about.texts),
        stand_in=stand_in,
        partition=partition,
        held=Held("split"),
        settings=settings,
        metric=about.metric,
        citation=by,
        rows=about.rows,
        test_rows=about.test_rows,
        classes=about.classes,
    )


def _alone(task: str) -> Benchmark:
    """A task for which no paper was named: 100 clients, or fewer where rows are few."""
    about = TASKS[task]
    clients = min(100, about.rows // 20)
    partition = _dirichlet(clients, 1.0)(task)
    if about.classes == 0:  # a score has no classes to deal
        partition = _iid(clients)(task)
    settings = dataclasses.replace(_ALONE, clients=clients)
    title = f"{task.upper()}: {about.title}"
    by = _GLUE if about.hub_id == "nyu-mll/glue" else "Bowman et al. (2015). SNLI."
    return _benchmark(f"glue/{task}", title, task, partition, settings, by)


def _of_paper(name: str, task: str) -> Benchmark:
    """A task as a paper deals it."""
    paper = PAPERS[name]
    settings = dataclasses.replace(paper.settings, **paper.changes.get(task, {}))
    title = f"{task.upper()} as {name} deals it"
    partition = paper.deal(task)
    full = f"glue/{name}/{task}"
    return _benchmark(full, title, task, partition, settings, paper.citation)


BENCHMARKS = (
    *map(_alone, TASKS),
    *itertools.chain.from_iterable(
        (_of_paper(name, task) for task in paper.tasks)
        for name, paper in PAPERS.items()
    ),
)
