"""The 1797 handwritten digits of scikit-learn (8 x 8 pixels), dealt to clients by label.

images --+-- tuning, a quarter (no seed of a study sees them)
         +-- final, dealt anew for every seed --+-- test
                                                +-- public
                                                +-- clients, by a Dirichlet
                                                    partition over the label
"""

from typing import NamedTuple

import numpy as np

from fedjax_fm.population import DirichletPartitioner, Population

Arrays = dict[str, np.ndarray]
SPLIT_SEED = 1000  # of tuning and final images, the same for all seeds of a study
TUNING_SHARE = 0.25
# Tuning has a third as many clients and images, so that a client has as many as in a
# run of the study.
SMALLER = 3


class Digits(NamedTuple):
    """Images of 64 pixels from 0 to 1, as `x`; `label` from 0 to 9."""

    clients: Population
    test: Arrays
    public: Arrays  # of no client


def digits() -> Arrays:
    """All images.

    Returns:
      {"x": f32[1797, 64], "label": i32[1797]}.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits ship with scikit-learn: pip install 'fedjax-fm[study]'"
        ) from error
    x, label = map(np.asarray, load_digits(return_X_y=True))
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
    """Deals a split's images to clients, a test set and a public set, without overlap.

    Args:
      seed: of the dealing.
      split: "tuning" or "final"; tuning has a third of all numbers below.
      clients: how many.
      alpha: of the Dirichlet distribution; small for clients with few labels.
      test: images.
      public: images.
      smallest: images that a client has at least.

    Returns:
      The three parts.
    """
    images = digits()
    whole, random = np.random.default_rng(SPLIT_SEED), np.random.default_rng(seed)
    order = whole.permutation(len(images["label"]))
    cut = round(TUNING_SHARE * len(order))
    rows = order[cut:]
    if split == "tuning":
        rows = order[:cut]
        clients, test, public = clients // SMALLER, test // SMALLER, public // SMALLER
    rows = random.permutation(rows)
    tested, shown, own = np.split(rows, (test, test + public))

    def take(rows: np.ndarray) -> Arrays:
        return {name: array[rows] for name, array in images.items()}

    partitioner = DirichletPartitioner(
        clients, "label", alpha, min_partition_size=smallest, seed=seed
    )
    population = Population.from_table(take(own), by=partitioner)
    return Digits(clients=population, test=take(tested), public=take(shown))
