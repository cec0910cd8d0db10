"""The 1797 handwritten digits of 8 x 8 pixels that ship with scikit-learn, dealt to
clients by label.

images --+-- tuning, a quarter (no seed of a study sees them)
         +-- final, dealt anew for every seed --+-- test
                                                +-- public
                                                +-- clients, by a Dirichlet partition over the label
"""

from typing import NamedTuple

import numpy as np

from fedjax_fm.population import DirichletPartitioner, Population

Arrays = dict[str, np.ndarray]
SPLIT_SEED = 1000  # of tuning and final images, the same for all seeds of a study
TUNING_SHARE = 0.25
# tuning has a third as many clients and images: a client's own are as many as in a run
# of the study
SMALLER = 3


class Digits(NamedTuple):
    """Images of 64 pixels from 0 to 1, as `x`; `label` from 0 to 9."""

    clients: Population
    test: Arrays
    public: Arrays


def digits() -> Arrays:
    """All of them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits ship with scikit-learn: pip install 'fedjax-fm[study]'"
        ) from error
    x, label = load_digits(return_X_y=True)
    return {"x": (x / 16).astype(np.float32), "label": label.astype(np.int32)}


def deal(
    seed: int,
    split: str,
    *,
    clients: int,
    alpha: float,
    test: int,
    public: int = 0,
    smallest: int = 1,
) -> Digits:
    """Clients and what they are judged on, no image in two places.

    Args:
      seed: names who has what.
      split: "tuning" or "final".
      clients: of a final population; so are the other numbers.
      alpha: of the Dirichlet distribution, small for clients with few labels.
      test, public: images.
      smallest: that a client must have.
    """
    images = digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images["label"]))
    cut = round(TUNING_SHARE * len(order))
    rows = order[:cut] if split == "tuning" else order[cut:]
    if split == "tuning":
        clients, test, public = clients // SMALLER, test // SMALLER, public // SMALLER
    rows = np.random.default_rng(seed).permutation(rows)
    tested, shown, own = np.split(rows, (test, test + public))

    def take(rows: np.ndarray) -> Arrays:
        return {name: array[rows] for name, array in images.items()}

    partitioner = DirichletPartitioner(
        clients, "label", alpha, min_partition_size=smallest, seed=seed
    )
    population = Population.from_table(take(own), by=partitioner)
    return Digits(clients=population, test=take(tested), public=take(shown))
