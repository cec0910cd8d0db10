"""Clients of one domain each, and what an arm may train on them: a model with LoRA, a head."""

from typing import Any, NamedTuple

import numpy as np
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft, study, systems, tasks
from fedjax_fm.experiments.shared.encoders import classifier, with_lora
from fedjax_fm.experiments.shared.features import preparation, standard_features
from fedjax_fm.experiments.shared.sentences import (
    Arrays,
    of_split,
    partition,
    sentences,
)
from fedjax_fm.population.splits import split_by_group, split_clients, split_within

NOTHING = systems.Preparation()


class Data(NamedTuple):
    """Clients' sentences, and the model that reads them."""

    whole: Any  # the classifier before LoRA
    adapted: peft.Adapted
    task: ffm.Task  # one object, so that what scores it is compiled once a seed
    train: list[Arrays]  # of each training client
    own: list[Arrays]  # the same clients' test sentences
    held_out: list[Arrays]  # of clients that never train
    test: Arrays  # of other documents
    preparation: systems.Preparation = NOTHING  # of the features that clients train on


def data(config: Any, seed: int, split: str) -> Data:
    """Splits off documents for the test, and deals the others to clients."""
    found = sentences(config.model, config.max_length)
    rows = of_split(found, split, 0.25)
    shares = {"clients": 0.85, "test": 0.15}
    documents = split_by_group(found.document[rows], shares, seed, found.domain[rows])
    share = 1 if split == "final" else 4
    counts = {
        "train": config.clients // share,
        "held_out": max(1, config.held_out_clients // share),
    }
    clients = partition(
        found,
        rows[documents["clients"]],
        n=sum(counts.values()),
        seed=seed,
        how=config.partition,
        alpha=config.alpha,
    )
    roles = split_clients(len(clients), counts, seed)
    halves = [split_within(clients[k], 0.8, seed + int(k)) for k in roles["train"]]
    random = np.random.default_rng(seed)

    def some(rows: np.ndarray, most: int) -> Arrays:
        return found.take(random.permutation(rows)[:most])

    whole = classifier(config.model, seed)
    adapted = with_lora(whole, config.rank, seed, config.targets)
    return Data(
        whole=whole,
        adapted=adapted,
        task=tasks.classification(adapted),
        train=[found.take(train) for train, _ in halves],
        own=[some(test, config.most_own) for _, test in halves],
        held_out=[some(clients[k], 4 * config.most_own) for k in roles["held_out"]],
        test=some(rows[documents["test"]], config.most_test),
    )


def in_features(run: study.Run) -> Data:
    """The same clients with features of the frozen model, and a linear head on them."""

    def make() -> Data:
        data, most = run.data, run.config.head_examples
        some = [
            {name: array[:most] for name, array in client.items()}
            for client in data.train
        ]
        parts = (some, data.own, data.held_out, [data.test])
        train, own, held_out, (test,) = standard_features(data.whole, *parts)
        linear = nnx.Linear(test["x"].shape[1], 2, rngs=nnx.Rngs(run.seed))
        head = peft.apply(linear, peft.full())
        return data._replace(
            adapted=head,
            task=tasks.classification(head),
            train=train,
            own=own,
            held_out=held_out,
            test=test,
            preparation=preparation(data.whole, some),
        )

    found = run.once("features", make)
    run.computed(found.preparation)
    return found
