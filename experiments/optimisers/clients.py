"""Clients under three partitions, and the small model on features that they train."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft, systems, tasks
from fedjax_fm.experiments.shared.encoders import classifier, with_lora
from fedjax_fm.experiments.shared.features import preparation, standard_features
from fedjax_fm.experiments.shared.sentences import Arrays, of_split, sentences
from fedjax_fm.population import DirichletPartitioner, IidPartitioner


class Data(NamedTuple):
    """A small model, its clients under each partition, and a test for all."""

    task: ffm.Task
    adapted: peft.Adapted
    clients: dict[str, list[Arrays]]
    test: Arrays
    preparation: systems.Preparation  # of the clients' sentences


def _partitioner(n: int, name: str, seed: int) -> Any:
    """IID, or Dirichlet over the label with clients of like sizes, of which some may be empty."""
    if name == "iid":
        return IidPartitioner(n, seed=seed)
    how = {"min_partition_size": 0, "self_balancing": True}
    return DirichletPartitioner(n, "label", float(name), seed=seed, **how)


class Layers(nnx.Module):
    """A layer and a head on features."""

    def __init__(self, n_in: int, hidden: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(n_in, hidden, rngs=rngs)
        self.classifier = nnx.Linear(hidden, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[n, 2]."""
        return self.classifier(jnp.tanh(self.hidden(x)))


@functools.cache
def of_features(config: Any) -> tuple[Any, Arrays, systems.Preparation]:
    """The sentences, MiniLM's features of them, of mean 0 and deviation 1, their work."""
    found = sentences(config.model, config.max_length)
    drawn = np.random.default_rng(0).permutation(len(found.arrays["label"]))
    rows = drawn[: config.sentences]
    kept = found._replace(
        arrays=found.take(rows),
        domain=found.domain[rows],
        document=found.document[rows],
    )
    whole = classifier(config.model, seed=0)
    ((features,),) = standard_features(whole, [kept.arrays])
    return kept, features, preparation(whole, [kept.arrays])


@functools.cache
def data(config: Any, seed: int, split: str) -> Data:
    """Deals the split's sentences in three ways."""
    found, features, work = of_features(config)
    rows = of_split(found, split, 0.4)
    rows = np.random.default_rng(seed).permutation(rows)
    n_test = round(config.test_share * len(rows))
    test, train = rows[:n_test], rows[n_test:]

    def take(some: np.ndarray) -> Arrays:
        return {name: array[some] for name, array in features.items()}

    table = {"label": features["label"][train]}
    clients = {}
    for name in config.partitions:
        parts = _partitioner(config.clients, name, seed).partition(table)
        clients[name] = [take(train[part]) for part in parts if len(part)]
    layers = Layers(features["x"].shape[1], config.hidden, nnx.Rngs(seed))
    adapted = with_lora(layers, config.rank, seed, targets="hidden")
    return Data(
        task=tasks.classification(adapted),
        adapted=adapted,
        clients=clients,
        test=take(test),
        preparation=work.part(len(train), of=len(features["label"])),
    )
