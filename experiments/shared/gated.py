"""Tasks of the gate, dealt to clients by Dirichlet."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm.experiments.gate.tasks import KINDS, TASKS, Arrays, Rows, read, shuffled
from fedjax_fm.experiments.gate.training import fixed_quarter
from fedjax_fm.population import DirichletPartitioner, IidPartitioner

TUNING_SHARE = 3  # tuning has a third as many examples and clients


class Dealt(NamedTuple):
    """Clients with examples of one task.

    Attributes:
      whole: the classifier before any method.
      clients: that train.
      test: examples of other texts or emoji.
      task: of an adapted model.
      labels: the column that a control shuffles.
    """

    whole: nnx.Module
    clients: ffm.Population
    test: Arrays
    task: Callable[[Any], ffm.Task]
    labels: str

    def with_shuffled_labels(self, seed: int) -> ffm.Population:
        """The clients with labels that were permuted among all of them.

        Args:
          seed: of the permutation.
        """
        arrays = dict(self.clients.arrays)
        arrays[self.labels] = shuffled(np.asarray(arrays[self.labels]), seed)
        return ffm.Population.from_arrays(arrays, self.clients.offsets)

    @property
    def scoring(self) -> dict[str, Any]:
        """How test examples are computed: texts in lengths of their own."""
        return {"bucket": 16} if "attention_mask" in self.test else {}


def deal_gated(
    name: str,
    seed: int,
    split: str,
    *,
    train: int,
    test: int,
    clients: int,
    alpha: float | None,
    max_length: int,
    smallest: int = 4,
) -> Dealt:
    """Deals the examples of a task to clients.

    Clients differ in labels: of a picture its class counts, of a sentence the tag that
    it has most often.

    Args:
      name: of the task, a key of `gate.tasks.TASKS`.
      seed: of examples, clients and the head.
      split: "tuning", of a fixed quarter that no seed uses, or "final".
      train: examples of all clients together.
      test: examples.
      clients: how many.
      alpha: of the Dirichlet distribution; None: alike.
      max_length: tokens of a text.
      smallest: examples that a client has at least.
    """
    rows, task = read(name), TASKS[name]
    kind = KINDS[task.kind]
    tuning, own = fixed_quarter(rows.train)
    judged = rows.test
    if split == "tuning":
        own, judged = tuning, rows.validation
        train, test, clients = (n // TUNING_SHARE for n in (train, test, clients))
    chosen = np.random.default_rng(seed).permutation(own)[:train]
    tested = np.random.default_rng(0).permutation(judged)[:test]
    table = {"class": _classes(rows, chosen)}
    if alpha is None:
        dealt = IidPartitioner(clients).partition(table)
    else:
        how: dict[str, Any] = {"min_partition_size": smallest, "seed": seed}
        dealt = DirichletPartitioner(clients, "class", alpha, **how).partition(table)
    encoded = kind.encode(rows.table.select(chosen), task.model, max_length)
    return Dealt(
        whole=kind.whole(task.model, rows.classes, seed),
        clients=ffm.Population.from_clients(
            [{name: x[own] for name, x in encoded.items()} for own in dealt]
        ),
        test=kind.encode(rows.table.select(tested), task.model, max_length),
        task=kind.task,
        labels=kind.labels,
    )


def _classes(rows: Rows, chosen: np.ndarray) -> np.ndarray:
    """i32[n]: of a picture its class, of a sentence its commonest tag."""
    columns = rows.table.columns
    if "labels" not in columns:
        return np.asarray(rows.table["label"][chosen], np.int32)
    tags = rows.table["labels"][chosen]
    return np.array([np.bincount(one).argmax() for one in tags], np.int32)
