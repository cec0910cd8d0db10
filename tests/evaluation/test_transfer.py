"""Forgetting and transfer against double loops and by hand."""

import math

import numpy as np
import pytest

from fedjax_fm.evaluation import transfer


def by_loops(table, before, sign):
    """Each mean, task by task, counted from 1 as the papers do."""
    n = len(table)
    score = {(t + 1, j + 1): table[t][j] for t in range(n) for j in range(n)}
    score |= {(0, j + 1): before[j] for j in range(n)}
    backward = forgetting = forward = 0.0
    for j in range(1, n):
        backward += sign * (score[n, j] - score[j, j]) / (n - 1)
        best = max(sign * score[t, j] for t in range(1, n + 1))
        forgetting += (best - sign * score[n, j]) / (n - 1)
    for j in range(2, n + 1):
        forward += sign * (score[j - 1, j] - score[0, j]) / (n - 1)
    average = sum(score[n, j] for j in range(1, n + 1)) / n
    return average, backward, forgetting, forward


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_against_loops(n, higher):
    random = np.random.default_rng(n)
    table, before = random.random((n, n)), random.random(n)
    found = transfer(table, before, higher_is_better=higher)
    assert found[:4] == pytest.approx(by_loops(table, before, 1 if higher else -1))
    assert found.forgetting >= 0
    assert (found.forgotten >= 0).all()


def test_by_hand():
    # The second task spoils the first; the third repairs half of that.
    table = [[0.8, 0.3, 0.2], [0.4, 0.9, 0.5], [0.6, 0.7, 1.0]]
    found = transfer(table, before=[0.1, 0.1, 0.1])
    assert found.average == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert found.backward == pytest.approx((-0.2 - 0.2) / 2)
    assert found.forgetting == pytest.approx((0.2 + 0.2) / 2)
    assert found.forward == pytest.approx((0.2 + 0.4) / 2)
    assert found.forgotten == pytest.approx([0.2, 0.2, 0.0])


def test_a_task_that_later_ones_help_is_not_forgotten():
    found = transfer([[0.5, 0.0], [0.7, 0.9]])
    assert found.backward == pytest.approx(0.2)
    assert found.forgetting == 0
    assert math.isnan(found.forward)


def test_losses_are_turned_round():
    table, before = np.random.default_rng(0).random((2, 3, 3))
    one = transfer(table, before[0])
    other = transfer(-table, -before[0], higher_is_better=False)
    assert other.average == -one.average
    assert other[1:4] == pytest.approx(one[1:4])


def test_one_task_and_a_model_that_does_not_change():
    assert transfer([[0.7]], [0.2])[:4] == (0.7, 0, 0, 0)
    same = transfer(np.full((4, 4), 0.3), np.full(4, 0.3))
    assert same[1:4] == (0, 0, 0)


def test_what_was_not_measured_may_be_nan():
    nan = math.nan
    table = [[0.8, nan, nan], [0.9, 0.9, nan], [0.6, 0.7, 1.0]]
    found = transfer(table, [0.1, 0.1, 0.1])
    assert found.forgetting == pytest.approx((0.3 + 0.2) / 2)
    assert math.isnan(found.forward)


@pytest.mark.parametrize(
    ("table", "before", "words"),
    [
        ([], None, "each task after each task"),
        ([0.5, 0.5], None, "got shape"),
        ([[0.5, 0.5]], None, r"got shape \[1, 2\]"),
        ([[0.5, 0.5], [0.5, math.nan]], None, "finite scores"),
        ([[math.inf, 0.5], [0.5, 0.5]], None, "finite scores"),
        ([[0.5]], [0.5, 0.5], "before all tasks"),
    ],
)
def test_bad_tables(table, before, words):
    with pytest.raises(ValueError, match=words):
        transfer(table, before)


def test_bad_flag():
    with pytest.raises(TypeError, match="higher_is_better=1"):
        transfer([[0.5]], higher_is_better=1)  # type: ignore[arg-type]
