"""Rated sentences of four domains, dealt to clients of one domain each.

No document is in two places:

    documents --+-- tuning (no seed of a study sees them)
                +-- final, dealt anew for every seed --+-- clients' training sentences
                                                       +-- the same clients' own test
                                                           sentences
"""

import functools
from typing import Any, NamedTuple

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
        """The arrays of some rows.

        Args:
          rows: numbers of sentences.
        """
        return {name: array[rows] for name, array in self.arrays.items()}


class Share(NamedTuple):
    """Row numbers of one client's sentences."""

    domain: str
    train: np.ndarray
    test: np.ndarray  # of other documents


class Client(NamedTuple):
    """The sentences of one client."""

    domain: str
    train: Arrays
    test: Arrays  # of other documents


@functools.cache
def sentences(model: str, max_length: int) -> Sentences:
    """All sentences, in the tokens of a model.

    Args:
      model: whose tokenizer.
      max_length: tokens; longer sentences are cut.

    Returns:
      One row a sentence.
    """
    table = datasets.load_sentiment()
    tokenizer = models.load_tokenizer(model)
    tokens = models.tokenize(tokenizer, list(table["text"]), max_length)
    arrays = {**tokens, "label": table["label"].astype(np.int32)}
    domain, document = np.asarray(table["domain"]), np.asarray(table["group"])
    return Sentences(arrays, domain, document)


def of_split(found: Sentences, split: str, tuning_share: float) -> np.ndarray:
    """Rows of a split's documents, the same share of every domain.

    Args:
      found: all sentences.
      split: "tuning" or "final".
      tuning_share: of the documents.

    Returns:
      Row numbers.
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
) -> list[Share]:
    """Deals a number of sentences of one domain to each client.

    Args:
      found: all sentences.
      rows: of those that are dealt.
      seed: of documents, sentences and clients.
      train: sentences of a client.
      test: sentences of a client, of other documents.
      per_domain: clients of a domain.

    Returns:
      The clients, in the order of the domains.

    Raises:
      ValueError: a domain has too few sentences.
    """
    random, share = np.random.default_rng(seed), train / (train + test)
    shares = {"train": share, "test": 1 - share}
    halves = split_by_group(found.document[rows], shares, seed, found.domain[rows])
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
        pairs = zip(mine["train"], mine["test"], strict=True)
        clients += [Share(str(name), *pair) for pair in pairs]
    return clients


def deal_split(config: Any, seed: int, split: str, **changes: Any) -> list[Client]:
    """Deals a split's sentences to clients; 40 % of the documents are for tuning.

    Args:
      config: of a study; has `model` and `max_length` as for `sentences`, `train`,
        `test` and `per_domain` as for `deal`.
      seed: of documents, sentences and clients.
      split: "tuning" or "final".
      **changes: other values than those of the configuration.

    Returns:
      The clients, in the order of the domains.
    """
    given = {**vars(config), **changes}
    sizes = {name: given[name] for name in ("train", "test", "per_domain")}
    found = sentences(given["model"], given["max_length"])
    dealt = deal(found, of_split(found, split, 0.4), seed, **sizes)
    return [
        Client(one.domain, found.take(one.train), found.take(one.test)) for one in dealt
    ]


def turned(arrays: Arrays) -> Arrays:
    """The same sentences with good for bad and bad for good.

    Args:
      arrays: with `label`.
    """
    return {**arrays, "label": 1 - arrays["label"]}


def partition(
    found: Sentences,
    rows: np.ndarray,
    n: int,
    seed: int,
    how: str = "domain",
    alpha: float = 0.3,
) -> list[np.ndarray]:
    """Deals all of the rows to clients.

    Args:
      found: all sentences.
      rows: of those that are dealt.
      n: clients.
      seed: of the dealing.
      how: "domain": clients of one domain each, equally many of every domain;
        "dirichlet": by a Dirichlet distribution over the label; "iid".
      alpha: of the Dirichlet distribution.

    Returns:
      Row numbers of each client.

    Raises:
      ValueError: fewer clients than domains.
    """
    if how == "domain":
        return _by_domain(found, rows, n, seed)
    if how == "dirichlet":
        partitioner = DirichletPartitioner(n, "label", alpha, seed=seed)
    else:
        partitioner = IidPartitioner(n, seed=seed)
    table = {"label": found.arrays["label"][rows]}
    return [rows[part] for part in partitioner.partition(table)]


def _by_domain(
    found: Sentences, rows: np.ndarray, n: int, seed: int
) -> list[np.ndarray]:
    """Rows of n clients of one domain each, equally many of every domain."""
    names = np.unique(found.domain[rows])
    if n < len(names):
        raise ValueError(f"{len(names)} domains need as many clients at least, got {n}")
    random, clients = np.random.default_rng(seed), []
    numbers = np.array_split(range(n), len(names))
    for name, mine in zip(names, numbers, strict=True):
        of_domain = random.permutation(rows[found.domain[rows] == name])
        clients += np.array_split(of_domain, len(mine))
    return clients
