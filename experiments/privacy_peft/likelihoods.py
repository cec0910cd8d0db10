"""How likely a model finds clients' tokens, and the secrets of canaries."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.privacy_peft.clients import Arrays, Data
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.study.judged import joined
from fedjax_fm.types import Tree

BATCH = 128  # rows that are computed at once


class Told(NamedTuple):
    """What a model says of rows.

    Attributes:
      learned: means over the test.
      members: f64[m], the mean log-probability of each client's tokens.
      outsiders: f64[n], likewise.
    """

    learned: dict[str, float]
    members: np.ndarray
    outsiders: np.ndarray


def told(task: ffm.Task, parts: tuple[Tree, Tree], data: Data, n_rows: int) -> Told:
    """Asks a model about test, members and outsiders, all in one go.

    Args:
      task: token classification.
      parts: (delta, backbone).
      data: of the seed.
      n_rows: of a client.
    """
    asked = [data.test, data.members, data.outsiders]
    each = ffm.evaluate(task, *parts, joined(asked), batch_size=BATCH)
    ends = np.cumsum([len(rows["labels"]) for rows in asked])[:-1]
    cut = {name: np.split(column, ends) for name, column in each.items()}
    test, members, outsiders = (
        {name: column[k] for name, column in cut.items()} for k in range(3)
    )
    return Told(
        learned=means(test),
        members=of_clients(members, n_rows),
        outsiders=of_clients(outsiders, n_rows),
    )


def of_clients(scores: dict[str, np.ndarray], n_rows: int) -> np.ndarray:
    """The mean log-probability of each client's tokens, f64[clients].

    Args:
      scores: {"loss", "weight"} of rows, one client after the other.
      n_rows: of a client.
    """
    weight = scores["weight"].astype(np.float64).reshape(-1, n_rows)
    loss = scores["loss"].astype(np.float64).reshape(-1, n_rows)
    total = (loss * weight).sum(axis=1)
    return -total / np.maximum(weight.sum(axis=1), 1)


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
