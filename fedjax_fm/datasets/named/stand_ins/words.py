"""Words of the package's own real text, and draws from lists of them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_fm.datasets.sentiment import load_sentiment

# Small closed categories: what a question can be asked about without a corpus.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ("horse", "otter", "sparrow", "goat", "lizard", "salmon", "beetle", "fox"),
    "fruit": ("apple", "cherry", "plum", "mango", "pear", "grape", "lemon", "fig"),
    "tool": ("hammer", "chisel", "saw", "wrench", "drill", "plane", "rasp", "clamp"),
    "metal": ("iron", "copper", "tin", "zinc", "silver", "nickel", "lead", "gold"),
    "river": ("Nile", "Rhine", "Volga", "Ganges", "Danube", "Congo", "Loire", "Elbe"),
    "colour": ("red", "green", "violet", "brown", "orange", "yellow", "grey", "white"),
    "garment": ("coat", "scarf", "glove", "shirt", "boot", "apron", "cap", "skirt"),
    "instrument": ("violin", "flute", "oboe", "harp", "drum", "tuba", "lute", "cello"),
}  # fmt: skip


@functools.cache
def vocabulary(n: int = 2000) -> tuple[str, ...]:
    """The commonest words of the shipped sentences, of four letters or more.

    Args:
      n: how many.

    Returns:
      Lower-case words of ASCII letters, the commonest first, equal counts by alphabet.

    Example:
      >>> words = vocabulary()
      >>> len(words), min(map(len, words))
      (2000, 4)
    """
    counts: Counter[str] = Counter()
    for text in load_sentiment()["text"]:
        words = text.lower().split()
        counts.update(word for word in words if word.isascii() and word.isalpha())
    long = [word for word in counts if len(word) >= 4]
    return tuple(sorted(long, key=lambda word: (-counts[word], word))[:n])


@functools.cache
def sentences() -> tuple[tuple[str, float], ...]:
    """The shipped sentences of one line, each with its mean rating in [-4, 4].

    Returns:
      (text, rating) in the order of the files.
    """
    table = load_sentiment()
    pairs = zip(table["text"].tolist(), table["rating"].tolist(), strict=True)
    return tuple((text, rating) for text, rating in pairs if "\n" not in text)


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of them, all alike.

    Args:
      rng: draws it.
      options: at least one.

    Example:
      >>> pick(np.random.default_rng(0), ["a", "b", "c"])
      'c'
    """
    return options[int(rng.integers(len(options)))]


def some(rng: np.random.Generator, options: Sequence[Any], n: int) -> list[Any]:
    """`n` of them in random order, none twice.

    Args:
      rng: draws them.
      options: at least n.
      n: how many.

    Example:
      >>> sorted(some(np.random.default_rng(0), [1, 2, 3], 3))
      [1, 2, 3]
    """
    places = rng.choice(len(options), size=n, replace=False)
    return [options[k] for k in places.tolist()]


def weights_of(
    rng: np.random.Generator, n_clients: int, n_kinds: int, alpha: float
) -> np.ndarray:
    """Each client's shares of some kinds, drawn from a Dirichlet distribution.

    Args:
      rng: draws them.
      n_clients: how many clients.
      n_kinds: how many kinds.
      alpha: concentration; small makes clients that differ.

    Returns:
      f64[n_clients, n_kinds], each row summing to 1; with no client one row of equal
      shares.
    """
    if n_clients < 1:
        return np.full((1, n_kinds), 1 / n_kinds)
    return rng.dirichlet(np.full(n_kinds, alpha), size=n_clients)
