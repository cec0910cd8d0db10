"""What a frozen encoder makes of sentences, computed once.

A head alone can then be trained in no time.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from fedjax_fm.experiments.shared.judged import joined
from fedjax_fm.experiments.shared.sentences import Arrays


@nnx.jit
def _features(model: Any, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    return model.features(input_ids, attention_mask)


def features(model: Any, arrays: Arrays, batch_size: int = 16) -> Arrays:
    """{"x": what the classifier sees, f32[n, d], "label": i32[n]}.

    Args:
      model: a classifier with `features`.
      arrays: tokens and labels.
      batch_size: sentences that are computed at once.
    """
    n, found = len(arrays["label"]), []
    for start in range(0, n, batch_size):
        rows = np.resize(np.arange(start, min(start + batch_size, n)), batch_size)
        found.append(
            _features(model, arrays["input_ids"][rows], arrays["attention_mask"][rows])
        )
    return {"x": np.concatenate(found)[:n].astype(np.float32), "label": arrays["label"]}


def standard_features(
    model: Any, train: Sequence[Arrays], *others: Sequence[Arrays]
) -> list[list[Arrays]]:
    """Features of several lists of clients, each coordinate brought to mean 0 and
    deviation 1 on those that train.

    Args:
      model: a classifier with `features`.
      train: clients that train.
      others: more lists of clients.
    """
    found = [
        [features(model, client) for client in clients] for clients in (train, *others)
    ]
    x = joined(found[0])["x"]
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    return [
        [{**client, "x": (client["x"] - mean) / scale} for client in clients]
        for clients in found
    ]
