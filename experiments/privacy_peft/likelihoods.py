"""How likely a model finds clients' tokens, and the secrets of canaries."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft
from fedjax_fm.experiments.privacy_peft.clients import Arrays
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.types import Tree


def of_clients(
    task: ffm.Task, parts: tuple[Tree, Tree], rows: Arrays, n_rows: int
) -> np.ndarray:
    """The mean log-probability of each client's tokens, f64[clients].

    Args:
      task: token classification.
      parts: (delta, backbone).
      rows: of the clients, one after the other.
      n_rows: of a client.
    """
    found = ffm.evaluate(task, *parts, rows)
    weight = found["weight"].astype(np.float64).reshape(-1, n_rows)
    total = (found["loss"] * found["weight"]).astype(np.float64).reshape(-1, n_rows)
    return -total.sum(axis=1) / np.maximum(weight.sum(axis=1), 1)


def log_chances(
    adapted: peft.Adapted, delta: Tree, backbone: Tree, secrets: Arrays
) -> np.ndarray:
    """Log-probabilities of all classes where canaries have their secrets.

    Args:
      adapted: from `peft.apply`.
      delta: its trainable tree.
      backbone: its frozen tree.
      secrets: rows whose labels stand in the same columns.

    Returns:
      f32[m, s, K].
    """
    columns = np.flatnonzero(secrets["labels"][0] != IGNORED)
    read = {name: secrets[name] for name in ("hidden", "attention_mask")}
    return np.asarray(_log_chances(adapted.graphdef, delta, backbone, read, columns))


@functools.partial(jax.jit, static_argnames="graphdef")
def _log_chances(
    graphdef: Any, delta: Tree, backbone: Tree, read: Any, columns: Any
) -> jax.Array:
    logits = nnx.merge(graphdef, delta, backbone)(**read)
    return jax.nn.log_softmax(logits[:, columns], axis=-1)


def of_secrets(chances: np.ndarray, secrets: np.ndarray) -> np.ndarray:
    """The log-likelihood of secrets: the sum over their places.

    Args:
      chances: f32[m, s, K].
      secrets: i32[m or 1, n, s].

    Returns:
      f64[m, n].
    """
    found = 0.0
    for place in range(chances.shape[1]):
        columns = np.broadcast_to(secrets[..., place], (len(chances), secrets.shape[1]))
        found = found + np.take_along_axis(chances[:, place], columns, axis=1)
    return np.asarray(found, np.float64)
