"""GLUE's scores are scikit-learn's and SciPy's, of all rows and of each client."""

import numpy as np
import pytest

from fedjax_fm.datasets import named
from fedjax_fm.evaluation import (
    AGREEMENTS,
    by_client,
    f1,
    matthews,
    pearson,
    spearman,
)

CASES = range(8)


def classes(seed, n_classes):
    random = np.random.default_rng(seed)
    n = int(random.integers(3, 60))
    true = random.integers(0, n_classes, n)
    return np.where(
        random.random(n) < 0.6, true, random.integers(0, n_classes, n)
    ), true


def numbers(seed):
    """Some equal ones, as STS-B's targets have."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 11, int(random.integers(3, 60))) / 2
    noisy = true + random.normal(0, 2, len(true))
    return (noisy if seed % 2 else noisy.round()), true


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", CASES)
def test_matthews_is_that_of_scikit_learn(seed, n_classes):
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, true = classes(seed, n_classes)
    expected = metrics.matthews_corrcoef(true, predicted)
    assert matthews(predicted, true) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", CASES)
def test_f1_is_that_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, true = classes(seed, 3)
    for positive in range(3):
        expected = metrics.f1_score(
            true == positive, predicted == positive, zero_division=0
        )
        found = f1(predicted, true, positive)
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", CASES)
def test_correlations_are_those_of_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    a, b = numbers(seed)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-12)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-12)


def test_what_is_constant():
    metrics = pytest.importorskip("sklearn.metrics")
    ones, mixed = np.ones(4, int), np.array([0, 1, 1, 0])
    for pair in ((ones, mixed), (mixed, ones), (ones, ones), (0 * ones, ones)):
        assert matthews(*pair) == metrics.matthews_corrcoef(*pair[::-1]) == 0.0
    assert f1(0 * ones, 0 * ones) == 0.0
    for score in (pearson, spearman):
        assert np.isnan(score(ones, mixed))
        assert np.isnan(score([1.0], [2.0]))
    # As large as they come, and without rounding beyond one.
    assert pearson([1e8, 1e8 + 1, 1e8 + 2], [0.1, 0.2, 0.3]) <= 1.0


@pytest.mark.parametrize("score", AGREEMENTS.values())
def test_bad_input(score):
    with pytest.raises(ValueError, match="one prediction a target"):
        score([1, 0], [1])
    with pytest.raises(ValueError, match="at least one"):
        score([], [])
    with pytest.raises(TypeError, match="predictions as"):
        score(["a"], [1])


def test_classes_are_whole_and_numbers_are_finite():
    with pytest.raises(TypeError, match="whole numbers"):
        matthews([0.5], [1])
    with pytest.raises(ValueError, match="finite"):
        pearson([np.nan, 1.0], [1.0, 2.0])


def test_every_score_of_glue_is_here():
    names = [name for name in named.list_names() if name.startswith("glue/")]
    metrics = {one for name in names for one in named.find(name).metric}
    assert metrics <= set(AGREEMENTS)
    assert {"MCC", "F1", "Pearson", "Spearman"} <= metrics


def test_clients_get_their_own_and_undefined_ones_are_left_out():
    stats = pytest.importorskip("scipy.stats")
    a, b = numbers(5)
    owners = np.arange(len(a)) % 3
    owners[0] = 7  # a client of one row

    def of_rows(rows):
        return pearson(a[rows], b[rows])

    found = by_client(of_rows, owners, higher_is_better=True)
    own = {k: stats.pearsonr(a[owners == k], b[owners == k])[0] for k in range(3)}
    assert np.isnan(found.each[7])
    assert {k: found.each[k] for k in own} == pytest.approx(own)
    assert found.mean == pytest.approx(np.mean([*own.values()]))
    assert found.worst_decile == pytest.approx(min(own.values()))
    assert found.pooled == pytest.approx(stats.pearsonr(a, b)[0])
    assert found.mean != pytest.approx(found.pooled)
    # NaN of rows is a fault, and stays one.
    rows = np.where(owners == 1, np.nan, 1.0)
    assert np.isnan(by_client(rows, owners, higher_is_better=True).mean)
