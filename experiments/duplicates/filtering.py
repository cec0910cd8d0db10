"""Near duplicates found by keys of bands, and how many of the planted ones that were."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.datasets import quality
from fedjax_fm.experiments.duplicates.texts import ALONE, Users

SALT = b"one that all users share"
NEAR = quality.MinHash()
LOOSE = quality.MinHash(bands=25, rows=3, n_words=3)  # half of 0.31, for short texts
SAME = quality.MinHash(bands=1, rows=64)  # texts that are alike word by word


class Found(NamedTuple):
    """Users without duplicates.

    Attributes:
      users: with what stays.
      recall: share of pairs of one family that were joined.
      precision: share of joined pairs that are of one family.
      uplink_bytes: of keys.
      downlink_bytes: of answers.
    """

    users: Users
    recall: float
    precision: float
    uplink_bytes: int
    downlink_bytes: int


def without_duplicates(
    config: Any, users: Users, test: Sequence[str], minhash: quality.MinHash
) -> Found:
    """Lets one of near duplicates stay, and none of a text of the test.

    Texts of fewer words than canaries have are not looked at: short answers are the
    same in all plays. That speeches are repeated in the plays counts against precision.

    Args:
      config: of the study.
      users: with duplicates.
      test: texts that a holder of the test sends keys of.
      minhash: what counts as near.
    """
    rows = [_looked_at(config, texts) for texts in users.texts]
    pairs = list(zip(users.texts, rows, strict=True))
    sent = [[texts[k] for k in own] for texts, own in pairs]
    keys = [quality.band_keys(texts, SALT, minhash) for texts in (*sent, list(test))]
    answer = quality.keep_one(keys, first=[len(keys) - 1])
    stays = [np.ones(len(texts), bool) for texts in users.texts]
    for mask, own, kept in zip(stays, rows, answer.stays[:-1], strict=True):
        mask[own] = kept
    looked = [own[r] for own, r in zip(users.families, rows, strict=True)]
    families = np.concatenate(looked)
    recall, precision = of_pairs(families, answer.first[: len(families)])
    left = [
        [text for text, stay in zip(texts, mask, strict=True) if stay]
        for texts, mask in zip(users.texts, stays, strict=True)
    ]
    kept = [own[mask] for own, mask in zip(users.families, stays, strict=True)]
    return Found(
        users=Users(left, kept),
        recall=recall,
        precision=precision,
        uplink_bytes=answer.uplink_bytes,
        downlink_bytes=answer.downlink_bytes,
    )


def _looked_at(config: Any, texts: Sequence[str]) -> np.ndarray:
    """Numbers of the texts that are not too short."""
    sizes = np.array([len(text.split()) for text in texts])
    return np.flatnonzero(sizes >= config.shortest)


def of_pairs(families: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """(recall, precision) over all pairs of texts.

    Args:
      families: i64[n], what was planted together; ALONE: nothing.
      groups: i64[n], what was joined.

    Returns:
      Recall is 1 where nothing was planted, precision where nothing was joined.

    Example:
      >>> of_pairs(np.array([0, 0, 0, -1]), np.array([0, 0, 2, 2]))
      (0.3333333333333333, 0.5)
    """
    planted = families != ALONE
    names = np.stack([families[planted], groups[planted]], axis=1)
    both = _n_pairs(names)
    recalled = _n_pairs(families[planted])
    joined = _n_pairs(groups)
    return both / recalled if recalled else 1.0, both / joined if joined else 1.0


def _n_pairs(names: np.ndarray) -> int:
    """Pairs of rows that are equal."""
    _, counts = np.unique(names, axis=0, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())
