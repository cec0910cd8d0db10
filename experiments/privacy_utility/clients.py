"""Clients of two sentences of one domain each, as hidden states of the frozen layers."""

import functools
from typing import Any, NamedTuple

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import systems
from fedjax_fm.experiments.shared.encoders import classifier
from fedjax_fm.experiments.shared.sentences import (
    Arrays,
    Sentences,
    of_split,
    sentences,
)
from fedjax_fm.experiments.shared.tail import (
    Tail,
    for_the_tail,
    frozen_layers,
    preparation_of,
)
from fedjax_fm.population.splits import split_by_group


class Data(NamedTuple):
    """Clients, test and public sentences, with what the last layer reads."""

    model: Tail
    clients: ffm.Population
    test: Arrays
    public: Arrays  # sentences of public clients, one client after the other
    preparation: systems.Preparation  # of the clients' sentences


def data(config: Any, seed: int, split: str) -> Data:
    """Deals the split's documents."""
    found = pool(config.model, config.max_length, config.share)
    clients, test = deal(found, config, seed, split)
    public, _ = deal(found, config, 0, "tuning")
    arrays = found.take(clients.ravel())
    offsets = np.arange(len(clients) + 1) * config.sentences
    whole = classifier(config.model, seed)
    frozen, length = frozen_layers(whole, 1), found.arrays["attention_mask"].shape[1]
    return Data(
        model=Tail(whole, 1),
        clients=ffm.Population.from_arrays(arrays, offsets),
        test=found.take(test),
        public=found.take(public[: config.public_clients].ravel()),
        preparation=preparation_of(frozen, length, clients.size),
    )


@functools.lru_cache(maxsize=1)
def pool(model: str, max_length: int, share: float) -> Sentences:
    """Sentences as hidden states of the frozen layers.

    Args:
      model: its name.
      max_length: tokens of a sentence.
      share: of all sentences.
    """
    table = sentences(model, max_length)
    n = len(table.domain)
    rows = np.random.default_rng(0).permutation(n)[: round(share * n)]
    arrays = for_the_tail(classifier(model, 0), table.take(rows))
    return Sentences(arrays, table.domain[rows], table.document[rows])


def deal(
    found: Sentences, config: Any, seed: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Deals sentences to clients of one domain each, and other documents to the test.

    All seeds have the same number of clients, so that their privacy is the same, and
    they share their programs.

    Args:
      found: from `pool`.
      config: of the study.
      seed: of the dealing.
      split: "tuning" or "final".

    Returns:
      (row numbers of clients [clients, sentences], row numbers of the test).

    Raises:
      ValueError: there are too few sentences for a final split.
    """
    rows = of_split(found, split, config.public_share)
    random = np.random.default_rng(seed)
    shares = {"train": 1 - config.test_share, "test": config.test_share}
    halves = split_by_group(found.document[rows], shares, seed, found.domain[rows])
    train, clients = rows[halves["train"]], []
    for name in np.unique(found.domain):
        mine = random.permutation(train[found.domain[train] == name])
        whole = len(mine) // config.sentences * config.sentences
        clients.append(mine[:whole].reshape(-1, config.sentences))
    clients = random.permutation(np.concatenate(clients))
    if split == "final" and len(clients) < config.clients:
        raise ValueError(
            f"{len(clients)} clients of {config.sentences} sentences, "
            f"clients={config.clients} are asked for"
        )
    return clients[: config.clients], rows[halves["test"]]
