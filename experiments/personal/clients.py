"""Clients of either mind: those that train, and those that come later."""

from typing import Any, NamedTuple

from fedjax_fm import peft, systems
from fedjax_fm.experiments.shared.encoders import classifier, with_lora
from fedjax_fm.experiments.shared.sentences import Client, deal_split, turned
from fedjax_fm.experiments.shared.tail import (
    Tail,
    frozen_layers,
    of_each,
    preparation_of,
)


class Data(NamedTuple):
    """The clients that train, those that come later, and the model before training."""

    adapted: peft.Adapted
    clients: list[Client]
    new: list[Client]
    preparation: systems.Preparation  # of the training sentences of both


def data(config: Any, seed: int, split: str) -> Data:
    """Deals the split's documents to clients; every second one turns the labels."""
    whole, dealt = classifier(config.model, seed), deal_split(config, seed, split)
    train = of_each(whole, [one.train for one in dealt])
    test = of_each(whole, [one.test for one in dealt])
    clients, new = [], []
    for k, one in enumerate(dealt):
        number, halves = k % config.per_domain, (train[k], test[k])
        if number % 2:
            halves = map(turned, halves)
        group = new if number < config.new_per_domain else clients
        group.append(Client(one.domain, *halves))
    n_rows = sum(len(one["label"]) for one in train)
    length = train[0]["attention_mask"].shape[1]
    return Data(
        adapted=with_lora(Tail(whole, 1), config.rank, seed),
        clients=clients,
        new=new,
        preparation=preparation_of(frozen_layers(whole, 1), length, n_rows),
    )
