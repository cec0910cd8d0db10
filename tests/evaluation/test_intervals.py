"""Intervals, verdicts and corrections against tables, scipy and simulation."""

import numpy as np
import pytest
from scipy import stats

from fedjax_fm.evaluation import holm, paired_examples, paired_seeds
from fedjax_fm.evaluation.intervals import half_width, student_t975


def test_student_t_equals_the_table():
    for freedom, value in (
        (1, 12.706),
        (2, 4.303),
        (10, 2.228),
        (12, 2.179),
        (30, 2.042),
        (120, 1.980),
    ):
        assert student_t975(freedom) == pytest.approx(value, abs=2e-3)


def test_words_need_three_seeds_and_an_interval_without_zero():
    assert (
        paired_seeds(np.array([0.9, 0.91, 0.92]), np.array([0.8, 0.812, 0.819])).verdict
        == "better"
    )
    assert (
        paired_seeds(np.array([0.8, 0.812, 0.819]), np.array([0.9, 0.91, 0.92])).verdict
        == "worse"
    )
    assert (
        paired_seeds(np.array([0.9, 0.91]), np.array([0.8, 0.81001])).verdict
        != "better"
    )
    assert (
        paired_seeds(np.array([0.9]), np.array([0.1])).verdict == "no difference seen"
    )
    assert (
        paired_seeds(np.array([0.9, 0.7, 0.8]), np.array([0.8, 0.8, 0.8])).verdict
        == "no difference seen"
    )
    one_sided = paired_examples(np.ones(50), np.arange(50) % 2)
    assert "three paired seeds are needed" in one_sided.verdict


def test_the_p_value_is_that_of_scipys_paired_test():
    rng = np.random.default_rng(3)
    for n in (2, 3, 7):
        a, b = rng.normal(size=(2, n))
        assert paired_seeds(a, b).p == pytest.approx(
            stats.ttest_rel(a, b).pvalue, rel=1e-9
        )
    assert paired_seeds(np.array([0.5, 0.6]), np.array([0.5, 0.6])).p == 1


def test_holm_equals_the_definition():
    """Reject the i-th smallest of m while all before it and itself are at most 0.05 /
    (m - i + 1), by brute force.
    """
    rng = np.random.default_rng(1)
    for _ in range(200):
        ps = rng.uniform(size=6) ** 4
        some = {str(i): comparison_of(p) for i, p in enumerate(ps)}
        rejected, order = set(), np.argsort(ps)
        for place, i in enumerate(order):
            if ps[i] > 0.05 / (len(ps) - place):
                break
            rejected.add(str(i))
        assert {name for name, one in holm(some).items() if one.p < 0.05} == rejected
        assert list(holm(some)) == list(some)


def comparison_of(p):
    return paired_seeds(np.array([1.0, 2.0, 3.1]), np.array([0.0, 1.0, 2.0]))._replace(
        p=float(p)
    )


def test_verdicts_of_several_comparisons_hold_together():
    """Nine comparisons of equal methods: without correction a third of the studies find
    a difference, with it 5 %.
    """
    rng = np.random.default_rng(0)
    alone = together = 0
    for _ in range(400):
        base = rng.normal(size=4)
        some = {str(i): paired_seeds(base + rng.normal(size=4), base) for i in range(9)}

        def seen(found):
            return any(one.verdict != "no difference seen" for one in found.values())

        alone += seen(some)
        together += seen(holm(some))
    assert alone / 400 > 0.25
    assert together / 400 < 0.08


def test_a_family_is_corrected_once():
    some = holm({"a": comparison_of(0.01), "b": comparison_of(0.2)})
    assert some["a"].p == pytest.approx(0.02)
    assert str(some["a"]).endswith("better (Holm, 2 comparisons)")
    with pytest.raises(
        ValueError,
        match=r"corrected before: \['a', 'b'\]; give all of a family at once",
    ):
        holm(some)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        base = rng.normal(size=4)
        interval = paired_seeds(base + 0.5 + rng.normal(size=4), base)
        hits += interval.low <= 0.5 <= interval.high
    assert abs(hits / 2000 - 0.95) < 0.02


def test_half_an_interval_is_students():
    values = [3.0, 5.0, 10.0]  # mean 6, variance 13
    assert half_width(values) == pytest.approx(4.3026527299 * (13 / 3) ** 0.5, rel=1e-6)
    assert half_width([1.0]) == np.inf


# Values that are not finite


@pytest.mark.parametrize("compare", [paired_seeds, paired_examples])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_comparison_of_values_that_are_not_finite_is_refused(compare, bad):
    """Its interval would hold nothing, and the verdict be "no difference seen"."""
    good, wrong = np.array([0.1, 0.2, 0.3]), np.array([0.5, bad, 0.7])
    with pytest.raises(ValueError, match=r"a is not finite at \[1\]"):
        compare(wrong, good)
    with pytest.raises(ValueError, match=r"b is not finite at \[1\]"):
        compare(good, wrong)


@pytest.mark.parametrize("compare", [paired_seeds, paired_examples])
@pytest.mark.parametrize("values", [["1", "2"], [b"x", b"y"], [0.5, None]], ids=repr)
def test_a_comparison_of_what_is_no_number_is_refused(compare, values):
    with pytest.raises(TypeError, match="a as numbers"):
        compare(values, np.ones(2))


def test_a_half_width_of_nan_or_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"values.*not finite.*\[1\]"):
        half_width([0.1, np.nan, 0.3])
    with pytest.raises(ValueError, match="at least one"):
        half_width([])
