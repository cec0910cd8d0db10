"""Perplexity is exp of the token-weighted mean loss.

It does not depend on batches, buckets or how rows are dealt to clients.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_fm as ffm
from fedjax_fm.evaluation import evaluate, means


def counted(batch):
    return batch["attention_mask"][:, 1:] == 1


def loss(delta, backbone, batch, key):
    """The mean over the tokens of a row that count."""
    nats = jnp.sin(batch["input_ids"][:, 1:]) ** 2 + delta
    total = jnp.sum(jnp.where(counted(batch), nats, 0.0), axis=1)
    return total / jnp.maximum(counted(batch).sum(axis=1), 1), {}


TASK = ffm.Task(loss, lambda batch: counted(batch).sum(axis=1).astype(jnp.float32))


def rows(n=23, length=20):
    rng = np.random.default_rng(0)
    mask = (np.arange(length) < rng.integers(2, length, n)[:, None]).astype(np.int32)
    return {"input_ids": rng.integers(0, 9, (n, length)), "attention_mask": mask}


def perplexity(scores, part=slice(None)):
    return np.exp(means({name: x[part] for name, x in scores.items()})["loss"])


@pytest.mark.parametrize(
    "how", [{}, {"batch_size": 4, "bucket": 8}, {"batch_size": 64, "bucket": 3}]
)
def test_it_equals_the_plain_formula_for_any_batching(how):
    data = rows()
    mask = counted(data)
    nll = np.where(mask, np.sin(data["input_ids"][:, 1:]) ** 2 + 0.5, 0).sum(1)
    scores = evaluate(TASK, 0.5, (), data, **how)
    np.testing.assert_array_equal(scores["weight"], mask.sum(1))
    np.testing.assert_allclose(scores["loss"], nll / mask.sum(1), rtol=1e-5)
    assert perplexity(scores) == pytest.approx(np.exp(nll.sum() / mask.sum()), rel=1e-5)


SCORES = {"loss": np.array([1.0, 3.0, 1.0]), "weight": np.array([2.0, 3.0, 1.0])}


def test_it_does_not_depend_on_the_partition_as_the_mean_over_clients_does():
    shuffled = {name: column[[2, 0, 1]] for name, column in SCORES.items()}
    assert perplexity(SCORES) == pytest.approx(perplexity(shuffled))
    two_and_one = [perplexity(SCORES, slice(0, 2)), perplexity(SCORES, slice(2, 3))]
    one_and_two = [perplexity(SCORES, slice(0, 1)), perplexity(SCORES, slice(1, 3))]
    np.testing.assert_allclose(two_and_one, np.exp([11 / 5, 1.0]))
    assert not np.isclose(np.mean(two_and_one), np.mean(one_and_two))


def test_a_client_without_rows_or_without_tokens_has_no_mean():
    """NaN, which `np.nanmean` leaves out, and no warning."""
    untrained = {"loss": np.zeros(2), "weight": np.zeros(2)}
    assert np.isnan(perplexity(SCORES, slice(1, 1)))
    assert np.isnan(perplexity(untrained))
    plain = {"loss": np.zeros(0), "accuracy": np.zeros(0)}
    assert np.isnan(means(plain)["accuracy"])


def test_rows_without_tokens_count_nothing():
    data = rows(4)
    data["attention_mask"][1] = 0
    scores = evaluate(TASK, 0.5, (), data)
    assert scores["weight"][1] == 0
    assert perplexity(scores) == pytest.approx(
        perplexity({name: np.delete(x, 1) for name, x in scores.items()})
    )
    data["attention_mask"][:] = 0
    assert np.isnan(means(evaluate(TASK, 0.5, (), data))["loss"])


def test_packed_texts_are_cut_at_the_last_of_them():
    mask = np.array([[1, 1, 2, 2, 3, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0]])
    widths = []

    def seen(delta, backbone, batch, key):
        widths.append(batch["input_ids"].shape[1])
        return jnp.ones(len(batch["input_ids"])), {}

    packed = {"input_ids": np.ones_like(mask), "attention_mask": mask}
    evaluate(ffm.Task(seen), (), (), packed, bucket=2)
    assert set(widths) == {2, 6}
