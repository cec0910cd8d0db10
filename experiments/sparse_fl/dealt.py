"""Digits of clients that differ, each with images of its own to be judged by."""

import itertools
from typing import NamedTuple

import numpy as np

from fedjax_fm.experiments.shared.digits import Arrays, deal
from fedjax_fm.population import Population

OWN_TEST = 0.25  # of a client's images


class Dealt(NamedTuple):
    """Images of 64 pixels as `x`, `label` from 0 to 9."""

    clients: Population
    own: Population  # the same clients' test images
    test: Arrays  # of nobody
    public: Arrays  # of the server


def dealt(
    seed: int, split: str, *, clients: int, alpha: float, test: int, public: int
) -> Dealt:
    """Deals a split's images, then takes a quarter of each client's away for its test.

    Args:
      seed: of the dealing.
      split: "tuning" or "final".
      clients: how many.
      alpha: of the Dirichlet distribution over the label.
      test: images of the common test.
      public: images of the server.
    """
    sizes: dict[str, int] = {
        "clients": clients,
        "test": test,
        "public": public,
        "smallest": 5,
    }
    found = deal(seed, split, alpha=alpha, **sizes)
    offsets, arrays = found.clients.offsets, found.clients.arrays
    random = np.random.default_rng(seed)
    train, own = [], []
    for start, end in itertools.pairwise(offsets):
        rows = start + random.permutation(end - start)
        n_own = max(1, round(OWN_TEST * len(rows)))
        own.append({name: np.asarray(x)[rows[:n_own]] for name, x in arrays.items()})
        train.append({name: np.asarray(x)[rows[n_own:]] for name, x in arrays.items()})
    return Dealt(
        clients=Population.from_clients(train),
        own=Population.from_clients(own),
        test=found.test,
        public=found.public,
    )
