"""Features of sentences by a frozen encoder, computed once, to train a head alone."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from fedjax_fm import systems
from fedjax_fm.experiments.shared.sentences import Arrays
from fedjax_fm.experiments.shared.tail import batches, preparation_of
from fedjax_fm.study.judged import joined


@nnx.jit
def _features(model: Any, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    return model.features(input_ids, attention_mask)


def features(model: Any, arrays: Arrays, batch_size: int = 16) -> Arrays:
    """What the classifier of a model reads.

    Args:
      model: a classifier with `features`.
      arrays: tokens and labels.
      batch_size: sentences that are computed at once.

    Returns:
      {"x": f32[n, d], "label": i32[n]}.
    """
    ids, mask, n = arrays["input_ids"], arrays["attention_mask"], len(arrays["label"])
    each = [_features(model, ids[b], mask[b]) for b in batches(n, batch_size)]
    x = np.concatenate(each)[:n]
    return {"x": x.astype(np.float32), "label": arrays["label"]}


def standard_features(
    model: Any, train: Sequence[Arrays], *others: Sequence[Arrays]
) -> list[list[Arrays]]:
    """Features of clients, with mean 0 and deviation 1 on those that train.

    Args:
      model: a classifier with `features`.
      train: clients that train.
      *others: more lists of clients.

    Returns:
      For each list its clients' {"x", "label"}.
    """
    found = [
        [features(model, client) for client in clients] for clients in (train, *others)
    ]
    mean, scale = scale_of(joined(found[0])["x"])
    return [
        [{**client, "x": (client["x"] - mean) / scale} for client in clients]
        for clients in found
    ]


def preparation(
    model: Any, clients: Sequence[Arrays], batch_size: int = 16
) -> systems.Preparation:
    """What clients do who compute features of their own sentences.

    Args:
      model: a classifier with `features`.
      clients: tokens and labels of each.
      batch_size: sentences that are computed at once.
    """
    rows = sum(len(client["label"]) for client in clients)
    length = clients[0]["input_ids"].shape[1]
    how = {"rows": rows, "batch_size": batch_size, "method": "features"}
    return preparation_of(model, length, **how)


def scale_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature, the latter above zero.

    Args:
      x: f32[n, d].

    Returns:
      (f32[d], f32[d]).
    """
    return x.mean(axis=0), x.std(axis=0) + 1e-6
