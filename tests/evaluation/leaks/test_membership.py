"""Scores of members and others: areas, powers, intervals, and controls that tell nothing."""

import numpy as np
import pytest
from scipy import stats

from fedjax_fm.evaluation.leaks import (
    area_between,
    area_interval,
    blind_scores,
    membership,
    share_interval,
)


def draw(seed, n, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, n)


def area_by_pairs(first, second):
    """All pairs, one by one."""
    wins = [(a > b) + 0.5 * (a == b) for a in first for b in second]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("digits", [0, 6], ids=["ties", "no ties"])
def test_the_area_is_the_share_of_pairs(digits):
    first, second = draw(0, 23, 0.4).round(digits), draw(1, 31).round(digits)
    found = area_between(first, second)
    assert found == pytest.approx(area_by_pairs(first, second))
    theirs = stats.mannwhitneyu(first, second).statistic / (23 * 31)
    assert found == pytest.approx(theirs)


def test_equal_scores_tell_nothing():
    found = membership(np.ones(40), np.ones(30))
    assert found.area.value == 0.5
    assert found.area.low < 0.5 < found.area.high
    assert found.power.value == 0.0
    assert not found.is_found


def test_scores_that_are_apart_tell_everything():
    found = membership(draw(0, 40, 50.0), draw(1, 30))
    assert found.area.value == found.area.high == 1.0
    assert 0.8 < found.area.low < 1.0  # finite data, no certainty
    assert found.power.value == 1.0
    assert found.is_found


def test_what_only_grows_changes_nothing():
    members, others = draw(0, 40, 0.7), draw(1, 30)
    assert membership(members, others) == membership(np.exp(members), np.exp(others))


def test_at_a_half_the_interval_is_the_test_of_mann_and_whitney():
    m, n = 40, 25
    found = area_interval(0.5, m, n)
    error = np.sqrt((m + n + 1) / (12 * m * n))
    # The variance is taken at the ends, so that they lie a little nearer.
    assert found.high - 0.5 == pytest.approx(1.96 * error, rel=0.06)
    edge = area_interval(0.5 + 1.959964 * error, m, n)
    assert edge.low == pytest.approx(0.5, abs=1e-6)


def test_the_interval_of_the_area_covers_the_truth():
    """The area of two normals that are `shift` apart is Phi(shift / sqrt 2)."""
    for shift, n in ((0.0, 30), (1.0, 30), (2.5, 20)):
        truth = stats.norm.cdf(shift / np.sqrt(2))
        random = np.random.default_rng(3)
        hits = 0
        for _ in range(400):
            first, second = random.normal(shift, 1, n), random.normal(0, 1, n)
            found = area_interval(area_between(first, second), n, n)
            hits += found.low <= truth <= found.high
        assert hits / 400 >= 0.93, (shift, hits)


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (3, 7), (7, 7), (41, 1000)])
def test_the_interval_of_a_share_is_scipys(hits, trials):
    theirs = stats.binomtest(hits, trials).proportion_ci(method="exact")
    found = share_interval(hits, trials)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_the_power_is_at_so_many_false_alarms():
    """By a loop over all thresholds."""
    members, others = draw(0, 150, 1.0), draw(1, 200)
    for most in (0.0, 0.01, 0.1):
        best = max(
            (members > t).mean()
            for t in np.concatenate([others, members])
            if (others > t).mean() <= most
        )
        # Thresholds lie at scores of others here: those between them find no more.
        found = membership(members, others, most_false_alarms=most)
        assert found.false_alarms <= most
        assert found.power.value == pytest.approx(best, abs=1 / 150)


# The control that never asks the model


def texts(seed, n, tokens):
    return np.random.default_rng(seed).choice(tokens, (n, 8))


def test_alike_texts_are_not_told_apart_without_the_model():
    common = np.arange(50)
    inside, outside = blind_scores(texts(0, 200, common), texts(1, 200, common), 60)
    found = membership(inside, outside)
    assert found.area.low < 0.5 < found.area.high


def test_texts_of_another_kind_are_told_apart_without_the_model():
    old, new = np.arange(50), np.arange(10, 60)
    inside, outside = blind_scores(texts(0, 200, old), texts(1, 200, new), 60)
    assert membership(inside, outside).area.low > 0.7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], [1.0]), r"members as one row of scores, at least one, got shape \[0\]"),
        (([1.0], [[1.0]]), r"others as one row .* got shape \[1, 1\]"),
        (([1.0, np.nan], [1.0]), r"members\[1\]=nan"),
    ],
)
def test_scores_that_are_none_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        membership(*given)


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="most_false_alarms=1"):
        membership([1.0], [0.0], most_false_alarms=1)
    with pytest.raises(ValueError, match="hits=3"):
        share_interval(3, 2)
    with pytest.raises(ValueError, match=r"area=1\.5"):
        area_interval(1.5, 3, 3)
    with pytest.raises(ValueError, match="got 1 and 2"):
        blind_scores([[1]], [[1], [2]], 4)
