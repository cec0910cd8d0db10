"""Scores against plain formulas; intervals against tables and simulation."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_fm.evaluation import (
    Evaluator,
    by_client,
    holm,
    paired_examples,
    paired_seeds,
)
from fedjax_fm.evaluation.intervals import half_width, student_t975


def test_buckets_and_padding_change_no_score():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, 101)
    mask = (np.arange(20) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(0, 50, (101, 20)).astype(np.int32)
    table = jnp.asarray(rng.normal(size=(50, 3)).astype(np.float32))

    def logits(params, ids, mask):
        return (params[ids] * mask[..., None]).sum(1)

    label = rng.integers(0, 3, 101).astype(np.int32)
    results = Evaluator(logits, batch_size=8, bucket=4)(
        table, {"input_ids": ids, "attention_mask": mask, "label": label}
    )
    scores = (np.asarray(table)[ids] * mask[..., None]).sum(1).astype(np.float64)
    losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(101), label]
    np.testing.assert_array_equal(results.correct, scores.argmax(1) == label)
    np.testing.assert_allclose(results.loss, losses, rtol=1e-4, atol=1e-5)
    per_client = by_client(results, [1, 60, 40])
    assert per_client[2] == pytest.approx(results.correct[61:].mean())
    with pytest.raises(ValueError, match="99 rows, the results 101"):
        by_client(results, [99])


def test_non_finite_losses_are_named():
    evaluate = Evaluator(lambda p, ids, mask: jnp.full((ids.shape[0], 2), jnp.nan))
    arrays = {
        "input_ids": np.ones((3, 4), int),
        "attention_mask": np.ones((3, 4), int),
        "label": np.zeros(3, int),
    }
    with pytest.raises(FloatingPointError, match="example 0"):
        evaluate(None, arrays)
    with pytest.raises(ValueError, match="no rows"):
        evaluate(None, {name: array[:0] for name, array in arrays.items()})


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
