"""Texts whose words depend on the label, with a Bayes rate in closed form.

A text of a class has cue words and other words. Each of m cues is, independently, of the
text's own class with probability q and of each other class with (1 - q) / (C - 1). All
classes are equally likely, and the other words say nothing. So the best guess is the
class with the most cues, a tie is a draw, and with n = (n_1, ..., n_C) cues

    Bayes rate = sum_n  m! / prod_c n_c!  q^n_1 p^(m - n_1)  [n_1 = max n] / #{c: n_c = max n}

with p = (1 - q) / (C - 1). A score (STS-B) is the share of k of m words that two texts
have in common, with uniform noise, and its best correlation is known as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_fm.datasets.named.benchmark import Request
from fedjax_fm.datasets.named.stand_ins.words import some, vocabulary

N_CUES, OWN, N_OTHERS = 7, 0.65, 8  # m, q, and words that say nothing
CUES_OF_A_CLASS = 12  # different words
N_SHARED = 9  # words of a text whose similarity is scored


def bayes_rate(n_classes: int, n_cues: int = N_CUES, own: float = OWN) -> float:
    """The accuracy of the best guess, by the sum over all counts of cues.

    Args:
      n_classes: C.
      n_cues: m, cues of a text.
      own: q, the probability that a cue is of the text's class.

    Returns:
      A share in [1 / C, 1].

    Example:
      >>> bayes_rate(2, n_cues=1, own=0.65)
      0.65
      >>> round(bayes_rate(2), 3), round(bayes_rate(3), 3)
      (0.8, 0.89)
    """
    other = (1 - own) / (n_classes - 1)
    total = 0.0
    for n in range(n_cues + 1):  # of the own class
        rest = n_cues - n
        chance = math.comb(n_cues, n) * own**n * other**rest
        # The others' arrangements with no class above n, by how many reach n.
        ways = _arrangements(n_classes - 1, rest, n)
        total += chance * sum(count / (ties + 1) for ties, count in ways.items())
    return total


def _arrangements(n_classes: int, n_cues: int, most: int) -> dict[int, int]:
    """{classes with exactly `most` cues: ways to give n_cues to classes, none above}."""
    found: dict[tuple[int, int], int] = {(0, 0): 1}  # (cues given, ties) -> ways
    for _ in range(n_classes):
        grown: dict[tuple[int, int], int] = {}
        for (given, ties), ways in found.items():
            for n in range(min(most, n_cues - given) + 1):
                key = (given + n, ties + (n == most))
                more = ways * math.comb(n_cues - given, n)
                grown[key] = grown.get(key, 0) + more
        found = grown
    return {ties: ways for (given, ties), ways in found.items() if given == n_cues}


def bayes_pearson(n_shared: int = N_SHARED) -> float:
    """The correlation of the best guess with the scores of `similarities`.

    The guess is s = 0.5 + 4 k / m with k uniform on 0, ..., m, the noise uniform with
    variance 1 / 12, so that it is sqrt(Var s / (Var s + 1 / 12)).

    Args:
      n_shared: m, words of a text.

    Example:
      >>> round(bayes_pearson(), 3)
      0.975
    """
    variance = 16 / n_shared**2 * ((n_shared + 1) ** 2 - 1) / 12
    return math.sqrt(variance / (variance + 1 / 12))


def cues(n_classes: int) -> list[tuple[str, ...]]:
    """The cue words of each class: real words, each of one class.

    Args:
      n_classes: how many.

    Example:
      >>> [len(words) for words in cues(3)]
      [12, 12, 12]
    """
    words = vocabulary()[: n_classes * CUES_OF_A_CLASS]
    return [words[k::n_classes] for k in range(n_classes)]


def classes(
    n_classes: int, names: Sequence[str], more: Callable[[int], dict[str, Any]]
) -> Callable[[Request], list[dict[str, Any]]]:
    """A generator of one or two texts with a class.

    Args:
      n_classes: C.
      names: one or two columns of text; the cues are dealt to both.
      more: from the label to the other columns of the row.

    Returns:
      A function of a request.
    """

    def generate(request: Request) -> list[dict[str, Any]]:
        rng, cued = request.rng, cues(n_classes)
        plain = vocabulary()[n_classes * CUES_OF_A_CLASS :]
        rows = []
        for _ in request.clients:
            label = int(rng.integers(n_classes))
            chances = np.full(n_classes, (1 - OWN) / max(n_classes - 1, 1))
            chances[label] = OWN
            drawn = rng.choice(n_classes, size=N_CUES, p=chances)
            words = [cued[c][int(rng.integers(CUES_OF_A_CLASS))] for c in drawn]
            words = some(rng, [*words, *some(rng, plain, N_OTHERS)], N_CUES + N_OTHERS)
            halves = np.array_split(np.array(words, dtype=object), len(names))
            texts = [" ".join(half) for half in halves]
            rows.append({**dict(zip(names, texts, strict=True)), **more(label)})
        return rows

    return generate


def similarities(request: Request) -> list[dict[str, Any]]:
    """Pairs of texts with a score in [0, 5], in the schema of STS-B.

    Args:
      request: how many rows.

    Returns:
      Rows of `sentence1`, `sentence2`, `label`, `idx`.
    """
    rng, words = request.rng, vocabulary()
    rows = []
    for number in range(len(request.clients)):
        drawn = some(rng, words, 2 * N_SHARED)
        first, fresh = drawn[:N_SHARED], drawn[N_SHARED:]
        common = int(rng.integers(N_SHARED + 1))
        second = some(rng, [*first[:common], *fresh[common:]], N_SHARED)
        score = 0.5 + 4 * common / N_SHARED + float(rng.uniform(-0.5, 0.5))
        rows.append(
            {
                "sentence1": " ".join(first),
                "sentence2": " ".join(second),
                "label": score,
                "idx": number,
            }
        )
    return rows


def most_cues(text: str, n_classes: int) -> np.ndarray:
    """int[C]: how many cues of each class are in a text, for the best guess.

    Args:
      text: of `classes`; of a pair, both with a blank between.
      n_classes: C.
    """
    known = [set(words) for words in cues(n_classes)]
    pairs = itertools.product(text.split(), range(n_classes))
    found = [c for word, c in pairs if word in known[c]]
    return np.bincount(found, minlength=n_classes)
