"""Scores client by client against plain numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.evaluation import by_client, worst_decile


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.booleans())
def test_means_by_hand(seed, higher):
    rng = np.random.default_rng(seed)
    n_clients = int(rng.integers(2, 40))
    owners = np.concatenate([np.arange(n_clients), rng.integers(0, n_clients, 60)])
    scores = rng.normal(size=len(owners))
    held = sorted({int(i) for i in rng.integers(0, n_clients, n_clients // 3)})
    found = by_client(scores, owners, higher_is_better=higher, held_out=held)
    each = np.array([scores[owners == k].mean() for k in range(n_clients)])
    np.testing.assert_allclose([found.each[k] for k in range(n_clients)], each)
    seen = np.delete(each, held)
    assert found.pooled == pytest.approx(scores.mean())

    def worst(values):
        ordered = np.sort(values) if higher else -np.sort(-values)
        return ordered[: max(1, len(values) // 10)].mean()

    if len(seen):
        assert found.mean == pytest.approx(seen.mean())
        assert found.worst_decile == pytest.approx(worst(seen))
    if held:
        assert found.held_out == pytest.approx(each[held].mean())
        assert found.held_out_worst_decile == pytest.approx(worst(each[held]))
    else:
        assert np.isnan(found.held_out)


def test_rows_in_another_order_and_named_clients():
    scores, owners = np.array([1.0, 0, 0.5]), np.array(["b", "a", "b"])
    one = by_client(scores, owners, higher_is_better=True)
    other = by_client(scores[::-1], owners[::-1], higher_is_better=True)
    assert one.each == other.each == {"a": 0, "b": 0.75}


def test_a_function_of_rows_is_the_same_as_its_values():
    rng = np.random.default_rng(0)
    scores, owners = rng.normal(size=30), rng.integers(0, 7, 30)
    a = by_client(scores, owners, higher_is_better=False)
    b = by_client(lambda rows: scores[rows].mean(), owners, higher_is_better=False)
    assert a.each == pytest.approx(b.each)
    assert a.worst_decile == pytest.approx(b.worst_decile)


def test_which_end_is_the_worst():
    values = np.arange(20.0)
    assert worst_decile(values, "accuracy") == 0.5
    assert worst_decile(values, "loss") == 18.5
    assert worst_decile(values, "loss", higher_is_better=True) == 0.5
    assert np.isnan(worst_decile(np.array([np.nan]), "loss"))


def test_refusals():
    with pytest.raises(ValueError, match="one score a row"):
        by_client(np.ones(2), [1, 2, 3], higher_is_better=True)
    with pytest.raises(ValueError, match="without a row"):
        by_client(np.ones(2), [1, 2], higher_is_better=True, held_out=[5])
    with pytest.raises(TypeError, match="higher_is_better"):
        by_client(np.ones(2), [1, 2], higher_is_better="yes")
    with pytest.raises(ValueError, match="client of each row"):
        by_client(np.ones(0), [], higher_is_better=True)
