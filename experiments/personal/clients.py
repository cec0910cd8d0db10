"""Clients of either mind: those that train, and those that come later."""

from typing import Any, NamedTuple

from fedjax_fm import peft
from fedjax_fm.experiments.shared.encoders import classifier, with_lora
from fedjax_fm.experiments.shared.sentences import Client, deal_split, turned


class Data(NamedTuple):
    """The clients that train, those that come later, and the model before training."""

    adapted: peft.Adapted
    clients: list[Client]
    new: list[Client]


def data(config: Any, seed: int, split: str) -> Data:
    """Deals the split's documents to clients; every second one turns the labels."""
    clients, new = [], []
    for k, one in enumerate(deal_split(config, seed, split)):
        number = k % config.per_domain
        if number % 2:
            one = Client(one.domain, turned(one.train), turned(one.test))
        group = new if number < config.new_per_domain else clients
        group.append(one)
    whole = classifier(config.model, seed)
    return Data(with_lora(whole, config.rank, seed), clients, new)
