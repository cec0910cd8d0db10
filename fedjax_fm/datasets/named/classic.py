"""Data sets of the federated literature before language models were tuned."""

from __future__ import annotations

from typing import Any

from fedjax_fm.datasets.named import rows
from fedjax_fm.datasets.named.benchmark import (
    Benchmark,
    Held,
    Hub,
    Partition,
    Settings,
)
from fedjax_fm.datasets.named.stand_ins import chats, images, labels

_REDDI = "Reddi et al. (2021). Adaptive Federated Optimization. arXiv 2003.00295."
_HSU = (
    "Hsu et al. (2019). Measuring the Effects of Non-Identical Data Distribution for "
    "Federated Visual Classification. arXiv 1909.06335."
)
_BY_CLIENT = Partition("NaturalIdPartitioner", {"partition_by": "client"})
_RECALLED = ("clients", "cohort", "rounds", "batch_size", "lr")


def _newsgroup(number: int) -> dict[str, Any]:
    """The columns of a stand-in's post that are no text."""
    return {"label": number, "label_text": f"group {number}"}


def _writing(number: int, writer: int) -> dict[str, Any]:
    """The columns of a stand-in's character that are no picture."""
    return {"writer_id": f"w{writer:04d}", "hsf_id": 0, "character": number}


def _ten(number: int, _: int) -> dict[str, Any]:
    return {"label": number}


def _hundred(number: int, _: int) -> dict[str, Any]:
    return {"fine_label": number, "coarse_label": number // 5}


def _cifar(n_classes: int, label: str, stand_in: Any) -> Benchmark:
    """CIFAR with clients by a Dirichlet distribution over the classes."""
    return Benchmark(
        name=f"cifar{n_classes}",
        title=f"CIFAR-{n_classes}",
        hub=Hub(id=f"uoft-cs/cifar{n_classes}", columns=("img", label), test="test"),
        columns=("image", "label"),
        parse=rows.images("img", label),
        stand_in=stand_in,
        partition=Partition(
            "DirichletPartitioner",
            {
                "num_partitions": 100,
                "partition_by": "label",
                "alpha": 0.1,
                "min_partition_size": 1,
            },
            note="the paper's concentrations run from 0 to 100",
        ),
        held=Held("split"),
        settings=Settings(
            source="paper, recalled",
            model="a small convolutional network",
            clients=100,
            cohort=10,
            rounds=10_000,
            local_epochs=1,
            batch_size=64,
            lr=0.01,
            optimizer="SGD",
            server="FedAvg, with momentum or without",
            unverified=_RECALLED,
        ),
        metric=("accuracy",),
        citation=_HSU,
        rows=50_000,
        test_rows=10_000,
        classes=n_classes,
    )


BENCHMARKS = (
    Benchmark(
        name="20news",
        title="20 Newsgroups as FRLoRA deals it",
        hub=Hub(id="SetFit/20_newsgroups", columns=("text", "label"), test="test"),
        columns=("text", "label"),
        parse=rows.texts("text"),
        stand_in=labels.classes(20, ("text",), _newsgroup),
        partition=Partition(
            "DirichletPartitioner",
            {
                "num_partitions": 5,
                "partition_by": "label",
                "alpha": 0.5,
                "min_partition_size": 1,
            },
        ),
        held=Held("split"),
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
        metric=("accuracy",),
        citation="Yan et al. (2025). Federated Residual Low-Rank Adaption of Large "
        "Language Models. ICLR.",
        rows=11_314,
        test_rows=7_532,
        classes=20,
    ),
    Benchmark(
        name="shakespeare",
        title="Shakespeare's speeches by role",
        hub=Hub(id=None, columns=("speech", "client")),
        columns=("text",),
        parse=rows.posts("speech", "client"),
        stand_in=None,
        partition=_BY_CLIENT,
        held=Held("latest", 0.2),
        settings=Settings(
            source="paper, recalled (McMahan et al.: the roles; Reddi et al.: the rest)",
            model="LSTM over characters",
            clients=715,
            cohort=10,
            rounds=1200,
            local_epochs=1,
            batch_size=4,
            lr=1.0,
            optimizer="SGD",
            unverified=_RECALLED,
            note="clients are those of the paper's version; the shipped one has 1,056",
        ),
        metric=("next-character accuracy",),
        citation="McMahan et al. (2017). arXiv 1602.05629; Caldas et al. (2018). LEAF. "
        "arXiv 1812.01097.",
        rows=27_708,
        n_clients=1_056,
        licence="public domain; content of the source package under CC BY 2.5",
    ),
    Benchmark(
        name="stackoverflow",
        title="Stack Overflow by user, next words",
        hub=Hub(id=None, columns=("client", "tokens"), test="test", checked=False),
        columns=("text",),
        parse=rows.posts("tokens", "client"),
        stand_in=chats.next_words,
        partition=_BY_CLIENT,
        held=Held("split"),
        settings=Settings(
            source="paper, recalled",
            model="LSTM over 10,000 words",
            clients=342_477,
            cohort=50,
            rounds=1500,
            local_epochs=1,
            batch_size=16,
            length=20,
            lr=0.3,
            optimizer="SGD",
            server="FedAdam",
            unverified=_RECALLED,
            note="not on the hub: write the clients' sentences to files with these "
            "columns",
        ),
        metric=("next-word accuracy",),
        citation=_REDDI,
        rows=135_818_730,
        test_rows=16_586_035,
        n_clients=342_477,
        test_clients=204_088,
        licence="CC BY-SA 3.0",
    ),
    Benchmark(
        name="femnist",
        title="Handwritten characters by writer",
        hub=Hub(id="flwrlabs/femnist", columns=("image", "writer_id", "character")),
        columns=("image", "label"),
        parse=rows.images("image", "character", "writer_id"),
        stand_in=images.pictures(62, 28, 1, "image", _writing),
        partition=_BY_CLIENT,
        held=Held("latest", 0.1),
        settings=Settings(
            source="paper, recalled",
            model="a small convolutional network",
            clients=3_400,
            cohort=10,
            rounds=1500,
            local_epochs=1,
            batch_size=20,
            lr=0.1,
            optimizer="SGD",
            unverified=_RECALLED,
            note="clients are those of the paper's version",
        ),
        metric=("accuracy",),
        citation=f"Caldas et al. (2018). LEAF. arXiv 1812.01097; {_REDDI}",
        rows=814_277,
        n_clients=3_597,
        spread=0.4,
        classes=62,
    ),
    _cifar(10, "label", images.pictures(10, 32, 3, "img", _ten)),
    _cifar(100, "fine_label", images.pictures(100, 32, 3, "img", _hundred)),
)
