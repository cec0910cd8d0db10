"""Two clients a domain, judged on their own domain and on the others."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import peft
from fedjax_fm.experiments.shared.encoders import classifier, with_lora
from fedjax_fm.experiments.shared.sentences import Arrays, deal_split, turned
from fedjax_fm.study.judged import joined


class Client(NamedTuple):
    """One client's arrays."""

    train: Arrays
    own: Arrays  # test, of its domain
    others: Arrays  # test, of the other three

    def turned(self) -> "Client":
        """The same with good for bad and bad for good."""
        return Client(*map(turned, self))


class Data(NamedTuple):
    """Two clients a domain, in the order of the domains, and the model before training."""

    adapted: peft.Adapted
    clients: list[Client]

    def turned(self) -> list[Client]:
        """The clients, every second one with turned labels."""
        return [one.turned() if k % 2 else one for k, one in enumerate(self.clients)]


def data(config: Any, seed: int, split: str) -> Data:
    """Deals the split's documents to clients."""
    dealt = deal_split(config, seed, split, per_domain=2)
    random, clients = np.random.default_rng(seed), []
    for one in dealt:
        others = joined([other.test for other in dealt if other.domain != one.domain])
        some = random.permutation(len(others["label"]))[: config.test]
        shifted = {name: array[some] for name, array in others.items()}
        clients.append(Client(one.train, one.test, shifted))
    whole = classifier(config.model, seed)
    return Data(with_lora(whole, config.rank, seed), clients)
