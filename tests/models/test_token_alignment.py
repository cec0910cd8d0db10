"""Edit distances, vocabularies and warped sequences against recursion and brute force."""

import functools

import numpy as np
import pytest

from fedjax_fm import models
from fedjax_fm.models.token_alignment import edit_distances, token_text, warp

RNG = np.random.default_rng(0)


@functools.cache
def distance(a, b):
    """Levenshtein's by its recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance(a[1:], b[1:]) + (a[0] != b[0]),
        distance(a[1:], b) + 1,
        distance(a, b[1:]) + 1,
    )


def words(n, longest):
    return ["".join(RNG.choice(list("abc"), RNG.integers(0, longest))) for _ in range(n)]  # fmt: skip


def test_edit_distances_by_recursion():
    others = words(30, 7)
    for word in words(8, 7):
        expected = [distance(word, other) for other in others]
        assert edit_distances(word, others).tolist() == expected


def test_a_vocabulary_matches_itself_and_the_nearest():
    vocabulary = ["a", "b", "abc", "##ab", "c"]
    found = models.match_vocabulary(vocabulary, vocabulary)
    assert found.tolist() == [0, 1, 2, 3, 4]
    source = words(20, 6)
    target = sorted(set(words(15, 6)))
    for word, number in zip(source, models.match_vocabulary(source, target), strict=True):  # fmt: skip
        best = min(distance(word, other) for other in target)
        assert distance(word, target[number]) == best
    with pytest.raises(ValueError, match="got 0 and 1"):
        models.match_vocabulary([], ["a"])


def paths(t, s):
    """All ways from (0, 0) to (t - 1, s - 1) that never go back."""
    if (t, s) == (1, 1):
        return [[(0, 0)]]
    ways = []
    for i, j in ((t - 1, s - 1), (t - 1, s), (t, s - 1)):
        if i and j:
            ways += [[*way, (t - 1, s - 1)] for way in paths(i, j)]
    return ways


@pytest.mark.parametrize(("t", "s"), [(1, 1), (3, 2), (2, 4), (4, 4)])
def test_the_path_is_the_cheapest_by_brute_force(t, s):
    for _ in range(5):
        target, source = words(t, 5), words(s, 5)
        costs = np.array([[distance(a, b) for b in source] for a in target])
        sums = {}
        for way in paths(t, s):
            total = sum(costs[i, j] for i, j in way)
            sums.setdefault(total, []).append(way)
        best = sums[min(sums)]
        found = warp(target, source)
        chosen = [
            [min((costs[i, j], j) for a, j in way if a == i)[1] for i in range(t)]
            for way in best
        ]
        assert found.tolist() in chosen


def test_equal_tokenizers_align_as_they_are():
    for n in (1, 3, 6):
        text = [*words(n, 4), "a", "a", "a"]
        assert warp(text, text).tolist() == list(range(n + 3))
    ids = np.array([[0, 1, 2, -100], [1, 1, -100, -100]])
    vocabulary = ["x", "yy", "z"]
    found = models.align_texts(ids, ids, vocabulary, vocabulary)
    assert found.tolist() == [[0, 1, 2, -1], [0, 1, -1, -1]]


def test_texts_of_two_tokenizers():
    """Padding in front, and a text that the other left empty."""
    ours, theirs = ["un", "##like", "##ly"], ["\u2581unlike", "ly"]
    mine = np.array([[0, 1, 2], [0, 1, 2]])
    others = np.array([[-100, 0, 1], [-100, -100, -100]])
    found = models.align_texts(mine, others, ours, theirs)
    assert found.tolist() == [[1, 1, 2], [-1, -1, -1]]
    assert token_text("\u0120the") == " the"
    with pytest.raises(ValueError, match="got 2 and 1"):
        models.align_texts(mine, others[:1], ours, theirs)
