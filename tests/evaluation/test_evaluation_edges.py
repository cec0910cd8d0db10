"""Means over nothing and comparisons of NaN: refused, with the client or the pair."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.evaluation import (
    Evaluator,
    PerplexityEvaluator,
    Results,
    TokenLosses,
    by_client,
    paired_examples,
    paired_seeds,
    perplexity_by_client,
)
from fedjax_fm.evaluation.intervals import half_width

RESULTS = Results(np.array([True, False, True]), np.zeros(3, np.float32))
LOSSES = TokenLosses(np.ones(3), np.array([2, 0, 1]))
MEANS = {
    "accuracy": lambda sizes: by_client(RESULTS, sizes),
    "perplexity": lambda sizes: perplexity_by_client(LOSSES, sizes),
}


@pytest.mark.parametrize(
    "sizes", [[2.0, 1.0], [4, -1], [True, 2], ["2", "1"], [2, np.nan]], ids=str
)
@pytest.mark.parametrize("name", MEANS)
def test_sizes_are_whole_numbers(name, sizes):
    with pytest.raises((TypeError, ValueError), match=r"sizes\["):
        MEANS[name](sizes)


@pytest.mark.parametrize("compare", [paired_seeds, paired_examples])
def test_a_comparison_with_nan_is_refused(compare):
    """Its interval would hold nothing, and the verdict be "no difference seen"."""
    with pytest.raises(ValueError, match=r"a.*not finite.*\[1\]"):
        compare(np.array([0.5, np.nan, 0.7]), np.ones(3))
    with pytest.raises(ValueError, match=r"b.*not finite.*\[0, 2\]"):
        compare(np.ones(3), np.array([np.inf, 1.0, -np.inf]))
    with pytest.raises(TypeError, match="a as numbers"):
        compare(np.array(["1", "2"]), np.ones(2))


def test_a_half_width_of_nan_is_refused():
    with pytest.raises(ValueError, match=r"values.*not finite.*\[1\]"):
        half_width([0.1, np.nan, 0.3])
    with pytest.raises(ValueError, match="at least one"):
        half_width([])
    assert half_width([0.5]) == np.inf


# Arrays

MASKS = {
    "right": [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    "left": [
        [0, 0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    "holes": [
        [1, 0, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 1, 1, 0, 0, 1],
        [1, 1, 1, 0, 1, 1, 1, 1],
    ],
    "nothing": [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
    ],
}


def rows(kind="right", n=3):
    mask = np.array(MASKS[kind])[:n]
    ids = np.random.default_rng(0).integers(1, 9, mask.shape)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": np.where(mask, ids, -100),
        "label": ids[:, 0] % 2,
    }


@pytest.mark.parametrize("kind", MASKS)
def test_no_real_token_is_cut_off_wherever_the_padding_is(kind):
    """Rows are cut to the width of their bucket: counting ones would cut a row that is
    padded on the left.
    """
    arrays = rows(kind)
    real = arrays["attention_mask"] == 1

    def losses(params, batch):
        return params * batch["input_ids"], batch["attention_mask"] == 1

    tokens = {name: array for name, array in arrays.items() if name != "label"}
    found = PerplexityEvaluator(losses, batch_size=2, bucket=2)(1.5, tokens)
    np.testing.assert_allclose(
        found.nll, 1.5 * np.where(real, arrays["input_ids"], 0).sum(axis=1)
    )
    np.testing.assert_array_equal(found.tokens, real.sum(axis=1))

    def logits(params, ids, mask):
        total = jnp.sum(jnp.where(mask == 1, ids, 0), axis=1)
        return jnp.stack([0.0 * total, total - 10.0], axis=1)

    scored = Evaluator(logits, batch_size=2, bucket=2)(None, arrays)
    above = np.where(real, arrays["input_ids"], 0).sum(axis=1) > 10
    np.testing.assert_array_equal(scored.correct, above == arrays["label"])


EVALUATORS = {
    "Evaluator": Evaluator(lambda params, ids, mask: jnp.zeros((len(ids), 2))),
    "PerplexityEvaluator": PerplexityEvaluator(
        lambda params, batch: (0.0 * batch["input_ids"], batch["labels"] > -100)
    ),
}


@pytest.mark.parametrize("name", EVALUATORS)
@pytest.mark.parametrize("short", ["input_ids", "attention_mask", "target"])
def test_arrays_of_several_lengths_are_refused(name, short):
    """A row without a mask would count as wrong, one without a label not at all."""
    target = "label" if name == "Evaluator" else "labels"
    short = target if short == "target" else short
    arrays = rows()
    arrays[short] = arrays[short][:2]
    with pytest.raises(ValueError, match=f"equal length.*'{short}': 2"):
        EVALUATORS[name](None, arrays)


@pytest.mark.parametrize("name", EVALUATORS)
def test_numbers_that_would_be_narrowed_are_refused(name):
    """2**32 + 1 would be read as 1."""
    arrays = rows()
    target = "label" if name == "Evaluator" else "labels"
    arrays[target] = arrays[target].astype(np.int64)
    arrays[target][1] = 2**32 + 1
    with pytest.raises(ValueError, match=f"{target}.*4294967297"):
        EVALUATORS[name](None, arrays)
