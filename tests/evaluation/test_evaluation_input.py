"""What an evaluation may be given: losses and masks of one shape, numbers that are finite."""

import jax.numpy as jnp
import numpy as np
import pytest
from bad_values import Row, cases, is_refused

from fedjax_fm.evaluation import (
    PerplexityEvaluator,
    paired_examples,
    paired_seeds,
)


def losses_fn(params, batch):
    return jnp.ones(batch["input_ids"][:, 1:].shape), batch["attention_mask"][
        :, 1:
    ] == 1


def rows(mask):
    mask = np.asarray(mask, np.int32)
    ids = np.arange(mask.size).reshape(mask.shape)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


RIGHT = [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
TABLE = [
    Row(
        PerplexityEvaluator,
        {"losses_fn": losses_fn},
        {"batch_size": "whole", "bucket": "whole"},
    )
]


@pytest.mark.parametrize(("row", "parameter", "value"), cases(TABLE))
def test_bad_hyper_parameters(row, parameter, value):
    is_refused(row, parameter, value)


@pytest.mark.parametrize(("parameter", "value"), [("batch_size", 0), ("bucket", -1)])
def test_out_of_range(parameter, value):
    with pytest.raises(ValueError, match=f"{parameter}={value}"):
        PerplexityEvaluator(losses_fn, **{parameter: value})


def test_packed_rows_are_counted_by_their_tokens():
    packed = rows([[1, 1, 2, 2, 3, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0]])
    widths = []

    def seen(params, batch):
        widths.append(batch["input_ids"].shape[1])
        return losses_fn(params, batch)

    PerplexityEvaluator(seen, bucket=2)(0.0, packed)
    assert sorted(widths) == [2, 6]


@pytest.mark.parametrize(
    ("losses", "mask", "words"),
    [
        (
            lambda b: jnp.ones((2, 1)),
            lambda b: b["attention_mask"] == 1,
            r"one shape.*\[2, 1\].*\[2, 6\]",
        ),
        (
            lambda b: jnp.ones(2),
            lambda b: b["attention_mask"] == 1,
            r"one shape.*\[2\].*\[2, 6\]",
        ),
        (lambda b: jnp.float32(1), lambda b: b["attention_mask"] == 1, r"one shape"),
        (lambda b: jnp.ones((1, 6)), lambda b: b["attention_mask"][:1] == 1, r"2 rows"),
        (
            lambda b: jnp.ones((2, 6)),
            lambda b: b["attention_mask"].astype(jnp.float32),
            r"bool.*float32",
        ),
        (lambda b: jnp.ones((2, 6)), lambda b: b["attention_mask"], r"bool.*int32"),
    ],
)
def test_losses_and_masks_of_another_shape_are_refused(losses, mask, words):
    evaluator = PerplexityEvaluator(
        lambda params, batch: (losses(batch), mask(batch)), batch_size=2, bucket=6
    )
    with pytest.raises((TypeError, ValueError), match=words):
        evaluator(0.0, rows([[1] * 6, [1] * 6]))


def test_arrays_without_a_column_and_of_unequal_length():
    evaluator = PerplexityEvaluator(losses_fn, batch_size=2, bucket=6)
    with pytest.raises(ValueError, match="attention_mask"):
        evaluator(0.0, {"input_ids": np.zeros((2, 4), np.int32)})
    arrays = rows(RIGHT)
    with pytest.raises(ValueError, match=r"equal length.*'labels': 1"):
        evaluator(0.0, {**arrays, "labels": arrays["labels"][:1]})


@pytest.mark.parametrize("compare", [paired_seeds, paired_examples])
@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
def test_pairs_are_finite(compare, bad):
    """A NaN would be called no difference."""
    for a, b in (
        ([0.5, bad, 0.7], [0.1, 0.2, 0.3]),
        ([0.5, 0.6, 0.7], [0.1, bad, 0.3]),
    ):
        with pytest.raises(
            (TypeError, ValueError), match=r"not finite at \[1\]|as numbers"
        ):
            compare(a, b)
    with pytest.raises(TypeError, match="numbers"):
        compare([b"x", b"y"], [b"x", b"y"])
