"""Rated sentences of four domains, dealt to clients of one domain each.

No document is in two places.

documents of a domain --+-- tuning (no seed of a study sees them)
                        +-- final, dealt anew for every seed --+-- clients' training sentences
                                                               +-- the same clients' own
                                                               test sentences, other
                                                               documents
"""

import functools
from typing import NamedTuple

import numpy as np

from fedjax_fm import datasets, models
from fedjax_fm.population import DirichletPartitioner, IidPartitioner
from fedjax_fm.population.splits import split_by_group

SPLIT_SEED = 1000  # of tuning and final documents, the same for all seeds of a study
Arrays = dict[str, np.ndarray]


class Sentences(NamedTuple):
    """One row a sentence."""

    arrays: Arrays  # input_ids, attention_mask [n, T], label i32[n]
    domain: np.ndarray  # str[n]
    document: np.ndarray  # str[n]

    def take(self, rows: np.ndarray) -> Arrays:
        """The arrays of some rows."""
        return {name: array[rows] for name, array in self.arrays.items()}


class Client(NamedTuple):
    """One client's rows of the sentences."""

    domain: str
    train: np.ndarray
    test: np.ndarray


@functools.cache
def sentences(model: str, max_length: int) -> Sentences:
    """All of them, in the tokens of a model.

    Args:
      model: whose tokenizer.
      max_length: tokens; longer sentences are cut.
    """
    table = datasets.load_sentiment()
    tokens = models.tokenize(
        models.load_tokenizer(model), list(table["text"]), max_length
    )
    arrays = {**tokens, "label": table["label"].astype(np.int32)}
    return Sentences(arrays, np.asarray(table["domain"]), np.asarray(table["group"]))


def of_split(found: Sentences, split: str, tuning_share: float) -> np.ndarray:
    """Rows of the split's documents, of every domain alike.

    Args:
      found: all sentences.
      split: "tuning" or "final".
      tuning_share: of the documents.
    """
    shares = {"final": 1 - tuning_share, "tuning": tuning_share}
    return split_by_group(found.document, shares, SPLIT_SEED, found.domain)[split]


def deal(
    found: Sentences,
    rows: np.ndarray,
    seed: int,
    *,
    train: int,
    test: int,
    per_domain: int,
) -> list[Client]:
    """Clients with so many sentences each, of one domain, in the order of the domains.

    Args:
      found, rows: what is dealt.
      seed: names documents, sentences and clients.
      train, test: sentences of a client, of different documents.
      per_domain: clients of a domain.

    Raises:
      ValueError: a domain has too few sentences.
    """
    random, share = np.random.default_rng(seed), train / (train + test)
    halves = split_by_group(
        found.document[rows],
        {"train": share, "test": 1 - share},
        seed,
        found.domain[rows],
    )
    clients = []
    for name in np.unique(found.domain[rows]):
        mine = {}
        for half, size in (("train", train), ("test", test)):
            inside = rows[halves[half]]
            inside = random.permutation(inside[found.domain[inside] == name])
            if len(inside) < per_domain * size:
                raise ValueError(
                    f"{name}: {len(inside)} sentences to {half}, {per_domain} "
                    f"clients want {size} each; ask for fewer"
                )
            mine[half] = inside[: per_domain * size].reshape(per_domain, size)
        clients += [
            Client(str(name), *pair)
            for pair in zip(mine["train"], mine["test"], strict=True)
        ]
    return clients


def shuffled_labels(arrays: Arrays, seed: int) -> Arrays:
    """The same examples with each other's labels: nothing can be learned from them, a control.

    Args:
      arrays: with `label`.
      seed: of the permutation.
    """
    return {**arrays, "label": np.random.default_rng(seed).permutation(arrays["label"])}


def partition(
    found: Sentences,
    rows: np.ndarray,
    n: int,
    seed: int,
    how: str = "domain",
    alpha: float = 0.3,
) -> list[np.ndarray]:
    """Deals all of the rows to n clients.

    Args:
      found, rows: what is dealt.
      n: clients.
      seed: names who gets what.
      how: "domain", clients of one domain each, as many a domain; "dirichlet" over the
        label; "iid".
      alpha: of the Dirichlet distribution.

    Raises:
      ValueError: fewer clients than domains.
    """
    if how == "domain":
        domains = [
            rows[found.domain[rows] == name] for name in np.unique(found.domain[rows])
        ]
        if n < len(domains):
            raise ValueError(
                f"{len(domains)} domains need as many clients at least, got {n}"
            )
        random, counts = (
            np.random.default_rng(seed),
            [len(part) for part in np.array_split(range(n), len(domains))],
        )
        pairs = zip(domains, counts, strict=True)
        return [
            part
            for mine, count in pairs
            for part in np.array_split(random.permutation(mine), count)
        ]
    by_label = DirichletPartitioner(n, "label", alpha, seed=seed)
    one = by_label if how == "dirichlet" else IidPartitioner(n, seed=seed)
    return [
        rows[part] for part in one.partition({"label": found.arrays["label"][rows]})
    ]
