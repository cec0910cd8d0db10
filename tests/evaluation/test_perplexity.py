"""Perplexity does not depend on batches, buckets or how rows are dealt to clients."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.evaluation import PerplexityEvaluator, TokenLosses, perplexity_by_client


def rows(n=23, length=20):
    rng = np.random.default_rng(0)
    mask = (np.arange(length) < rng.integers(2, length, n)[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(0, 9, (n, length)),
        "attention_mask": mask,
        "labels": rng.integers(0, 9, (n, length)),
    }


def losses_fn(params, batch):
    return jnp.sin(batch["input_ids"][:, 1:]) ** 2 + params, batch["attention_mask"][
        :, 1:
    ] == 1


def test_sums_equal_the_plain_formula_for_any_batching():
    data = rows()
    counted = data["attention_mask"][:, 1:] == 1
    nll = np.where(counted, np.sin(data["input_ids"][:, 1:]) ** 2 + 0.5, 0).sum(1)
    for how in ({"batch_size": 4, "bucket": 8}, {"batch_size": 64, "bucket": 3}):
        found = PerplexityEvaluator(losses_fn, **how)(0.5, data)
        np.testing.assert_allclose(found.nll, nll, rtol=1e-5)
        np.testing.assert_array_equal(found.tokens, counted.sum(1))
    assert found.perplexity == pytest.approx(
        np.exp(nll.sum() / counted.sum()), rel=1e-6
    )


def test_token_weighting_is_partition_independent_and_client_means_are_not():
    found = TokenLosses(np.array([2.0, 9.0, 1.0]), np.array([2, 3, 1]))
    shuffled = TokenLosses(found.nll[[2, 0, 1]], found.tokens[[2, 0, 1]])
    assert found.perplexity == pytest.approx(shuffled.perplexity)
    np.testing.assert_allclose(
        perplexity_by_client(found, [2, 1]), np.exp([11 / 5, 1.0])
    )
    assert not np.isclose(
        np.mean(perplexity_by_client(found, [2, 1])),
        np.mean(perplexity_by_client(found, [1, 2])),
    )


def test_bad_input():
    with pytest.raises(FloatingPointError, match="row 0"):
        PerplexityEvaluator(losses_fn)(jnp.nan, rows())
    with pytest.raises(ValueError, match="no rows"):
        PerplexityEvaluator(losses_fn)(
            0.0, {name: array[:0] for name, array in rows().items()}
        )
    with pytest.raises(ValueError, match="7 rows"):
        perplexity_by_client(TokenLosses(np.ones(3), np.ones(3, int)), [3, 4])
