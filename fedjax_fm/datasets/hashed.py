"""To which split a key belongs: from its own hash, whatever other keys there are.

A word, a template or a document stays in its split if rows are dropped, if another
version of a package adds rows, or if two tables share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SHARES: dict[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}


def split_of(key: str, shares: Mapping[str, float] = SHARES) -> str:
    """The split of a key.

    The first 64 bits of SHA-256 of the key, over 2^64, are a point of [0, 1); the splits
    are intervals of it, in their order.

    Args:
      key: what must not be on two sides: a word, a template, a document.
      shares: {split: its share of the keys}; positive, sum 1.

    Returns:
      A key of `shares`.

    Raises:
      ValueError: shares that are not positive or do not sum to 1.

    Example:
      >>> split_of("bank"), split_of("court", {"train": 0.5, "test": 0.5})
      ('train', 'test')
    """
    total = sum(shares.values())
    if not shares or min(shares.values()) <= 0 or abs(total - 1) > 1e-9:
        raise ValueError(
            f"expected shares above 0 that sum to 1, got shares={dict(shares)}"
        )
    digest = hashlib.sha256(key.encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    reached = 0.0
    for name, share in shares.items():
        reached += share
        if point < reached:
            return name
    return name  # the sum of the shares may be a little less than 1


def splits_of(keys: Iterable[str], shares: Mapping[str, float] = SHARES) -> np.ndarray:
    """`split_of` of many keys; an own split of a table's rows is made with it.

    Args:
      keys: one a row, such as `table["word"]`.
      shares: as for `split_of`.

    Returns:
      str[rows].

    Raises:
      ValueError: shares that are not positive or do not sum to 1.

    Example:
      >>> splits_of(["bank", "bank", "court"], {"train": 0.5, "test": 0.5}).tolist()
      ['train', 'train', 'test']
    """
    names = [str(key) for key in keys]
    known = {name: split_of(name, shares) for name in dict.fromkeys(names)}
    return np.array([known[name] for name in names], dtype=str)


def choice(key: str, items: Sequence, count: int) -> list:
    """Up to `count` items, drawn without repetition by the hash of a key.

    Args:
      key: of the draw; another one draws others.
      items: to choose from, each with another text.
      count: at most so many.

    Returns:
      The chosen ones, in random order.

    Example:
      >>> choice("a", [1, 2, 3, 4], 2) == choice("a", [4, 3, 2, 1], 2)
      True
    """
    ranked = sorted(items, key=_rank(key))
    return ranked[:count]


def _rank(key: str):
    def rank(item: object) -> bytes:
        return hashlib.sha256(f"{key}\0{item}".encode()).digest()

    return rank
