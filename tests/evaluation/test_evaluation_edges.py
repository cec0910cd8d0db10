"""Means over nothing and comparisons of NaN: refused, with the client or the pair."""

import numpy as np
import pytest

from fedjax_fm.evaluation import Results, TokenLosses, by_client, paired_examples, paired_seeds, perplexity_by_client
from fedjax_fm.evaluation.intervals import half_width

RESULTS = Results(np.array([True, False, True]), np.zeros(3, np.float32))
LOSSES = TokenLosses(np.ones(3), np.array([2, 0, 1]))
MEANS = {
    "accuracy": lambda sizes: by_client(RESULTS, sizes),
    "perplexity": lambda sizes: perplexity_by_client(LOSSES, sizes),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_client_without_rows_has_no_mean(name):
    with pytest.raises(ValueError, match=r"clients \[1, 3\] have no rows"):
        MEANS[name]([2, 0, 1, 0])


def test_a_client_without_tokens_has_no_perplexity():
    with pytest.raises(ValueError, match=r"clients \[1\] have no token that counts"):
        perplexity_by_client(LOSSES, [1, 1, 1])


@pytest.mark.parametrize("sizes", [[2.0, 1.0], [4, -1], [True, 2], ["2", "1"], [2, np.nan]], ids=str)
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
