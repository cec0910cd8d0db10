"""An attack that never asks the model: what the examples alone tell of membership.

Das et al. 2024, "Blind Baselines Beat Membership Inference Attacks for Foundation
Models", arXiv 2406.16201; Meeus et al. 2024, arXiv 2406.17975.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_fm import checks


def blind_scores(
    members: Sequence[Any],
    others: Sequence[Any],
    vocabulary: int,
    *,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Naive Bayes on bags of tokens, each half scored by what the other half teaches.

        score(x) = mean over tokens v of x of log p(v | member) - log p(v | other),
        p(v | side) = (count of v + 1) / (tokens + vocabulary)

    An area under its ROC curve other than 0.5 says that members differ from others by
    themselves: figures of attacks on the model then say nothing of the model.

    Args:
      members: token ids i64[T] of each text that was trained on.
      others: those of each text that was not.
      vocabulary: V, ids are below it.
      seed: of the halves.

    Returns:
      (f64[m], f64[n]), larger: rather a member. 0 of a text without tokens.

    Raises:
      TypeError, ValueError: fewer than two texts on a side.

    References:
      Das, Zhang, Tramer 2024, arXiv 2406.16201, section 3.

    Example:
      >>> old, new = [[1, 2]] * 4, [[3, 2]] * 4
      >>> inside, outside = blind_scores(old, new, vocabulary=5)
      >>> bool(inside.min() > outside.max())
      True
    """
    checks.whole("vocabulary", vocabulary, least=1)
    if min(len(members), len(others)) < 2:
        raise ValueError(
            "expected two texts or more on either side, got "
            f"{len(members)} and {len(others)}"
        )
    random = np.random.default_rng(seed)
    bags = [_bags(members, vocabulary), _bags(others, vocabulary)]
    halves = [random.permutation(len(bag)) % 2 for bag in bags]
    found = [np.zeros(len(bag)) for bag in bags]
    for half in (0, 1):
        chances = [
            _log_p(bag[own != half].sum(axis=0))
            for bag, own in zip(bags, halves, strict=True)
        ]
        weights = chances[0] - chances[1]
        for score, bag, own in zip(found, bags, halves, strict=True):
            rows = bag[own == half]
            n_tokens = np.maximum(rows.sum(axis=1), 1)
            score[own == half] = rows @ weights / n_tokens
    return found[0], found[1]


def _bags(texts: Sequence[Any], vocabulary: int) -> np.ndarray:
    """f32[n, V], how often each token occurs in each text."""
    found = np.zeros((len(texts), vocabulary), np.float32)
    for row, text in zip(found, texts, strict=True):
        np.add.at(row, np.asarray(text, np.int64), 1)
    return found


def _log_p(counts: np.ndarray) -> np.ndarray:
    smoothed = counts.astype(np.float64) + 1
    return np.log(smoothed / smoothed.sum())
