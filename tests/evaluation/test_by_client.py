"""Scores client by client: sizes that fit, clients without rows, and arrays that belong
together.
"""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.evaluation import (
    Evaluator,
    PerplexityEvaluator,
    Results,
    TokenLosses,
    by_client,
    perplexity_by_client,
)
from fedjax_fm.evaluation.buckets import length_batches

RESULTS = Results(np.array([True, False, True, True, False]), np.zeros(5, np.float32))
LOSSES = TokenLosses(np.array([2.0, 1.0, 4.0, 0.0, 3.0]), np.array([1, 1, 2, 0, 2]))


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("sizes", [[0, 2, 3], [2, 0, 3], [2, 3, 0], [0, 0, 5, 0], [5]])
def test_a_client_without_rows_has_no_accuracy_and_no_perplexity(sizes):
    starts = np.cumsum([0, *sizes])
    for k, (start, size) in enumerate(zip(starts[:-1], sizes, strict=True)):
        accuracy, perplexity = (
            by_client(RESULTS, sizes)[k],
            perplexity_by_client(LOSSES, sizes)[k],
        )
        if size == 0:
            assert np.isnan(accuracy)
            assert np.isnan(perplexity)
        else:
            part = slice(start, start + size)
            assert accuracy == sum(RESULTS.correct[part].tolist()) / size
            assert perplexity == pytest.approx(
                np.exp(sum(LOSSES.nll[part]) / sum(LOSSES.tokens[part]))
            )


def test_a_client_without_tokens_has_no_perplexity():
    assert np.isnan(perplexity_by_client(LOSSES, [3, 1, 1])).tolist() == [
        False,
        True,
        False,
    ]
    assert np.isnan(TokenLosses(np.zeros(2), np.zeros(2, int)).perplexity)
    assert np.isnan(Results(np.zeros(0, bool), np.zeros(0)).accuracy)


def test_a_perplexity_too_large_for_a_float_is_infinite():
    huge = TokenLosses(np.array([1e4]), np.array([1]))
    assert huge.perplexity == np.inf
    assert perplexity_by_client(huge, [1]).tolist() == [np.inf]


@pytest.mark.parametrize("score", [by_client, perplexity_by_client])
@pytest.mark.parametrize(
    "sizes",
    [
        [6, -1],
        [2.0, 3.0],
        [2.5, 2.5],
        [True, 4],
        ["2", "3"],
        [np.nan, 5],
        [None, 5],
        [],
        [[2, 3]],
        5,
        "5",
    ],
    ids=repr,
)
def test_sizes_are_whole_numbers_of_rows(score, sizes):
    with pytest.raises((TypeError, ValueError), match="sizes"):
        score(RESULTS if score is by_client else LOSSES, sizes)


def test_sizes_may_be_an_array():
    assert by_client(RESULTS, np.array([2, 3], np.uint8)).tolist() == [0.5, 2 / 3]


MASKS = {
    "right": [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
    "left": [[0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1]],
    "holes": [[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0]],
    "packed": [[1, 1, 2, 2, 0, 0], [1, 2, 3, 0, 0, 0]],
    "none": [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
    "flags": np.array([[True, True, False, False, False, False]] * 2),
}


@pytest.mark.parametrize("form", MASKS)
def test_no_token_is_cut_off_whatever_side_is_padded(form):
    mask, seen = np.asarray(MASKS[form]), []
    for width, rows, _ in length_batches(mask, batch_size=1, bucket=2):
        assert not mask[rows, width:].any()
        seen += rows.tolist()
    assert sorted(seen) == [0, 1]


@pytest.mark.parametrize("form", ["left", "holes"])
def test_scores_do_not_depend_on_the_side_of_the_padding(form):
    mask = np.asarray(MASKS[form], np.int32)
    ids = np.arange(12).reshape(2, 6)

    def logits(params, ids, mask):
        return jnp.stack([(ids * mask).sum(1), jnp.full(len(ids), 9)], axis=1).astype(
            jnp.float32
        )

    arrays = {"input_ids": ids, "attention_mask": mask, "label": np.zeros(2, np.int32)}
    expected = (ids * mask).sum(1) >= 9
    assert (
        Evaluator(logits, batch_size=1, bucket=2)(None, arrays).correct.tolist()
        == expected.tolist()
    )


def scores(params, ids, mask):
    return jnp.zeros((len(ids), 3))


def losses(params, batch):
    return jnp.ones(batch["input_ids"].shape), batch["attention_mask"] == 1


GOOD = {
    "input_ids": np.ones((4, 3), np.int32),
    "attention_mask": np.ones((4, 3), np.int32),
    "label": np.arange(4) % 3,
}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("label", np.arange(6), "4.*6|6.*4"),
        ("label", np.arange(3), "3.*4|4.*3"),
        ("input_ids", np.ones((5, 3), np.int32), "5.*4|4.*5"),
        ("label", np.array([0, 1, 2, 2**32 + 1]), "'label'.*4294967297"),
        ("label", np.array([0, 1, 2, -1]), "label.*-1"),
        ("label", np.array([0.0, 1.0, 2.0, 0.5]), "label.*float64"),
        ("label", np.array(["a", "b", "a", "b"]), "'label' holds text"),
        ("attention_mask", np.ones(4, np.int32), r"attention_mask.*\[n, T\]"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(name, array, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Evaluator(scores)(None, {**GOOD, name: array})


@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_rows_that_are_too_few_for_a_perplexity_are_refused(name):
    arrays = {
        "input_ids": GOOD["input_ids"],
        "attention_mask": GOOD["attention_mask"],
        "labels": GOOD["input_ids"],
    }
    for rows in (3, 5):
        with pytest.raises(ValueError, match="lengths"):
            PerplexityEvaluator(losses)(
                None, {**arrays, name: np.ones((rows, 3), np.int32)}
            )


@pytest.mark.parametrize(
    "make",
    [
        lambda **how: Evaluator(scores, **how),
        lambda **how: PerplexityEvaluator(losses, **how),
    ],
)
@pytest.mark.parametrize("name", ["batch_size", "bucket"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None, np.nan])
def test_sizes_of_batches_and_buckets_are_checked(make, name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name}="):
        make(**{name: value})
