"""Images by their label, or sentences of one domain each, on 24 clients."""

from typing import Any, NamedTuple

import fedjax_fm as ffm
from fedjax_fm import tasks
from fedjax_fm.experiments.feddf.models import TASKS, weights
from fedjax_fm.experiments.shared import digits
from fedjax_fm.experiments.shared.encoders import classifier, with_lora
from fedjax_fm.experiments.shared.sentences import deal_split
from fedjax_fm.study.judged import joined


class Data(NamedTuple):
    """Clients, and a model that is trained on them."""

    task: ffm.Task
    delta: Any
    backbone: Any
    clients: list[digits.Arrays]
    test: digits.Arrays


def data(config: Any, seed: int, split: str) -> Data:
    """Deals the split's images or sentences to clients."""
    deal = images if config.task == "image" else texts
    return deal(config, seed, split)


def images(config: Any, seed: int, split: str) -> Data:
    """Digits, and two layers of convolutions."""
    sizes = {"clients": config.clients, "alpha": config.alpha, "test": config.test}
    dealt = digits.deal(seed, split, **sizes)
    return Data(
        task=TASKS[1],
        delta=weights(seed)[1],
        backbone=(),
        clients=[dealt.clients.client(k) for k in range(dealt.clients.n_clients)],
        test=dealt.test,
    )


def texts(config: Any, seed: int, split: str) -> Data:
    """Rated sentences, and LoRA on an encoder."""
    sizes = {"test": config.test // config.clients, "per_domain": config.clients // 4}
    each = deal_split(config, seed, split, **sizes)
    adapted = with_lora(classifier(config.model, seed), config.rank, seed)
    return Data(
        task=tasks.classification(adapted),
        delta=adapted.delta,
        backbone=adapted.backbone,
        clients=[one.train for one in each],
        test=joined([one.test for one in each]),
    )
