"""The last layers of an encoder, on hidden states that are computed once.

The layers before them are frozen, so that training reads their output alone.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fedjax_fm import models
from fedjax_fm.experiments.shared.sentences import Arrays, deal, of_split, sentences
from fedjax_fm.models.classifier import mean_of_real
from fedjax_fm.models.stacked import run_stacked


def _layers(model: Any, part: slice) -> nnx.Module:
    """Some of the stacked layers."""
    graphdef, state = nnx.split(model.bert.encoder.layer)
    some = jax.tree.map(lambda x: x[part], state)
    layers = nnx.merge(graphdef, some)
    numbers = range(model.config.num_hidden_layers)
    layers.stacked_layers = len(numbers[part])
    return layers


def last_layers(model: Any, n_layers: int) -> nnx.Module:
    """The last stacked layers of an encoder, as a module of their own.

    Args:
      model: a classifier with a BERT encoder.
      n_layers: how many.
    """
    return _layers(model, slice(-n_layers, None))


class Tail(nnx.Module):
    """The last layers, the mean over tokens, and the head.

    `tail(hidden f32[B, T, d], attention_mask [B, T]) -> logits`.

    Args:
      model: a classifier with a BERT encoder.
      n_layers: how many of its last layers.
    """

    def __init__(self, model: Any, n_layers: int):
        self.layer = last_layers(model, n_layers)
        self.classifier = nnx.clone(model.classifier)

    def __call__(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Logits f32[B, classes]."""
        mask = attention_mask.astype(bool)[:, None, None, :]
        states = run_stacked(self.layer, hidden, mask)
        return self.classifier(mean_of_real(states, attention_mask))


def hidden_states(
    model: Any, tokens: dict[str, np.ndarray], n_layers: int, batch_size: int = 64
) -> np.ndarray:
    """What the last layers of a model read.

    Args:
      model: a classifier with a BERT encoder.
      tokens: {"input_ids", "attention_mask"}: [n, T].
      n_layers: how many last layers read it.
      batch_size: rows that are computed at once.

    Returns:
      f32[n, T, d].
    """
    lower = nnx.clone(model.bert)
    lower.encoder.layer = _layers(model, slice(None, -n_layers))
    graphdef, state = nnx.split(lower)

    @jax.jit
    def compute(state: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(ids, mask)

    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    out = np.zeros((*ids.shape, model.config.hidden_size), np.float32)
    for rows in batches(len(ids), batch_size):
        out[rows] = compute(state, ids[rows], mask[rows])
    return out


def batches(n: int, batch_size: int) -> Iterator[np.ndarray]:
    """Row numbers of each batch; the last one is filled up by repeating its rows.

    Args:
      n: rows.
      batch_size: of every batch.
    """
    for start in range(0, n, batch_size):
        rows = np.arange(start, min(start + batch_size, n))
        yield np.resize(rows, batch_size)


class Dealt(NamedTuple):
    """Clients of four domains, with what the last layer reads.

    Arrays hold `hidden`, `attention_mask` and `label`.
    """

    model: Tail  # with a head of random values, the same for all arms of a seed
    train: list[Arrays]  # of each client
    test: list[Arrays]  # of the same clients
    public: Arrays  # labelled tuning sentences


def deal_hidden(
    name: str,
    max_length: int,
    seed: int,
    split: str,
    *,
    per_domain: int,
    train: int,
    test: int,
    public: int,
) -> Dealt:
    """Deals a split's documents to clients, and computes the frozen layers once.

    Args:
      name: of the model.
      max_length: tokens of a sentence.
      seed: of documents, clients, their order and the head.
      split: "tuning" or "final".
      per_domain: clients of a domain.
      train: sentences of a client.
      test: sentences of a client, of other documents.
      public: sentences of the tuning documents.

    Returns:
      The clients, in an order that is drawn, and the model's tail.
    """
    found = sentences(name, max_length)
    rows = of_split(found, split, 0.4)
    sizes = {"train": train, "test": test, "per_domain": per_domain}
    clients = deal(found, rows, seed, **sizes)
    random = np.random.default_rng(seed)
    order = random.permutation(len(clients))
    whole = models.from_pretrained(name, num_labels=2, pooling="mean", seed=seed)

    def seen(rows: np.ndarray) -> Arrays:
        arrays = found.take(rows)
        hidden = hidden_states(whole, arrays, 1)
        return {
            "hidden": hidden,
            "attention_mask": arrays["attention_mask"],
            "label": arrays["label"],
        }

    of_tuning = of_split(found, "tuning", 0.4)
    shown = np.random.default_rng(0).permutation(of_tuning)
    return Dealt(
        model=Tail(whole, 1),
        train=[seen(clients[k].train) for k in order],
        test=[seen(clients[k].test) for k in order],
        public=seen(shown[:public]),
    )
