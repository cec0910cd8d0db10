"""Scores against plain formulas; intervals against tables and simulation."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.evaluation import Evaluator, by_client, paired_examples, paired_seeds
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
    arrays = {"input_ids": np.ones((3, 4), int), "attention_mask": np.ones((3, 4), int), "label": np.zeros(3, int)}
    with pytest.raises(FloatingPointError, match="example 0"):
        evaluate(None, arrays)
    with pytest.raises(ValueError, match="no rows"):
        evaluate(None, {name: array[:0] for name, array in arrays.items()})


def test_student_t_equals_the_table():
    for freedom, value in ((1, 12.706), (2, 4.303), (10, 2.228), (12, 2.179), (30, 2.042), (120, 1.980)):
        assert student_t975(freedom) == pytest.approx(value, abs=2e-3)


def test_words_need_three_seeds_and_an_interval_without_zero():
    assert paired_seeds(np.array([0.9, 0.91, 0.92]), np.array([0.8, 0.812, 0.819])).verdict == "better"
    assert paired_seeds(np.array([0.8, 0.812, 0.819]), np.array([0.9, 0.91, 0.92])).verdict == "worse"
    assert paired_seeds(np.array([0.9, 0.91]), np.array([0.8, 0.81001])).verdict != "better"
    assert paired_seeds(np.array([0.9]), np.array([0.1])).verdict == "no difference seen"
    assert paired_seeds(np.array([0.9, 0.7, 0.8]), np.array([0.8, 0.8, 0.8])).verdict == "no difference seen"
    one_sided = paired_examples(np.ones(50), np.arange(50) % 2)
    assert "three paired seeds are needed" in one_sided.verdict


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        base = rng.normal(size=4)
        interval = paired_seeds(base + 0.5 + rng.normal(size=4), base)
        hits += interval.low <= 0.5 <= interval.high
    assert abs(hits / 2000 - 0.95) < 0.02


def test_half_an_interval_is_students():
    stats = [3.0, 5.0, 10.0]  # mean 6, variance 13
    assert half_width(stats) == pytest.approx(4.303 * (13 / 3) ** 0.5, rel=1e-6)
    assert half_width([1.0]) == np.inf
