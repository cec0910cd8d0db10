"""Bigram models of two vocabularies, public texts in both, and how they align."""

import jax.numpy as jnp
import numpy as np

import fedjax_fm as ffm
from fedjax_fm.algorithms import Alignment, Models, Reader
from fedjax_fm.algorithms.knowledge import text_losses

SMALL, LARGE, TEXTS, SHORT, LONG = 4, 6, 5, 3, 4
_RNG = np.random.default_rng(7)


def _public(length, n_tokens):
    labels = _RNG.integers(0, n_tokens, (TEXTS, length)).astype(np.int32)
    labels[1, -1] = -100
    return {"seen": _RNG.integers(0, n_tokens, (TEXTS, length)).astype(np.int32), "labels": labels}  # fmt: skip


def logits(table, backbone, batch):
    """A row of a table for each token that was seen."""
    return jnp.asarray(table)[batch["seen"]]


def loss(table, backbone, batch, key):
    return text_losses(logits(table, backbone, batch), batch["labels"]), {}


def _positions(length, other):
    positions = _RNG.integers(0, other, (TEXTS, length)).astype(np.int32)
    positions[2, 0] = -1
    return positions


CLIENT = Reader(logits, _public(SHORT, SMALL), SMALL)
SERVER = Reader(logits, _public(LONG, LARGE), LARGE)
TO_CLIENT = Alignment(_positions(SHORT, LONG), _RNG.integers(0, SMALL, LARGE))
TO_SERVER = Alignment(_positions(LONG, SHORT), _RNG.integers(0, LARGE, SMALL))
HOW = {"client": CLIENT, "server": SERVER, "to_client": TO_CLIENT, "to_server": TO_SERVER}  # fmt: skip
TASK = ffm.Task(loss)


def start():
    rng = np.random.default_rng(8)
    large = rng.normal(size=(LARGE, LARGE)).astype("f4")
    small = rng.normal(size=(SMALL, SMALL)).astype("f4")
    return Models(server=large, client=small)


def clients(sizes):
    rng = np.random.default_rng(9)
    return [
        {
            "seen": rng.integers(0, SMALL, (n, SHORT)).astype(np.int32),
            "labels": rng.integers(0, SMALL, (n, SHORT)).astype(np.int32),
        }
        for n in sizes
    ]


# The same in numpy


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def losses_of(table, data):
    """f64[n]: the mean cross-entropy of each text."""
    table, found = np.asarray(table, np.float64), []
    for seen, labels in zip(data["seen"], data["labels"], strict=True):
        real = labels != -100
        p = softmax(table[seen[real]])
        found.append(-np.log(p[np.arange(real.sum()), labels[real]]).mean())
    return np.array(found)


def slope(table, data, weights=None):
    """The gradient of the mean of `losses_of`."""
    table = np.asarray(table, np.float64)
    gradient = np.zeros_like(table)
    n = len(data["seen"])
    for seen, labels in zip(data["seen"], data["labels"], strict=True):
        real = labels != -100
        for s, y in zip(seen[real], labels[real], strict=True):
            back = softmax(table[s])
            back[y] -= 1
            gradient[s] += back / (real.sum() * n)
    return gradient


def apart_slope(table, data, teacher, alignment, better, k, temperature):
    """The gradient of the mean of T^2 KL over texts; `teacher` f64[n, S, V] logits."""
    table = np.asarray(table, np.float64)
    gradient, n = np.zeros_like(table), len(data["seen"])
    for i, (seen, labels) in enumerate(zip(data["seen"], data["labels"], strict=True)):
        positions = alignment.positions[i]
        counts = (positions >= 0) & (labels != -100)
        if not better[i] or not counts.any():
            continue
        for t in np.flatnonzero(counts):
            row = teacher[i][positions[t]]
            top = np.argsort(-row, kind="stable")[:k]
            p = softmax(row[top] / temperature)
            q = softmax(table[seen[t]] / temperature)
            back = q.copy()
            for token, share in zip(top, p, strict=True):
                back[alignment.tokens[token]] -= share
            gradient[seen[t]] += temperature * back / (counts.sum() * n)
    return gradient


def transferred(table, data, teacher, alignment, better, *, k, share, temperature, rate):  # fmt: skip
    """One step on all public texts."""
    hard = slope(table, data)
    soft = apart_slope(table, data, teacher, alignment, better, k, temperature)
    return np.asarray(table, np.float64) - rate * ((1 - share) * hard + share * soft)


def logits_of(table, data):
    return np.asarray(table, np.float64)[data["seen"]]
