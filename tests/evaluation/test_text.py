"""ROUGE-L against Google's rouge-score, a brute-force subsequence and its own laws."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.evaluation import rouge_l
from fedjax_fm.evaluation.text import longest_common_subsequence

WORDS = st.lists(st.sampled_from("abcd"), max_size=8)


def brute_force(a, b):
    """The longest of all subsequences of a that is one of b."""

    def is_in(part):
        rest = iter(b)
        return all(word in rest for word in part)

    return max(
        n
        for n in range(len(a) + 1)
        for part in itertools.combinations(a, n)
        if is_in(part)
    )


@settings(deadline=None)
@given(WORDS, WORDS)
def test_longest_common_subsequence(a, b):
    assert (
        longest_common_subsequence(a, b)
        == brute_force(a, b)
        == longest_common_subsequence(b, a)
    )


@pytest.mark.filterwarnings("ignore:.*give rouge_l a tokenizer")
@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("the cat sat on the mat", "the cat is on the mat"),
        ("Returns x_1, the 2nd value.", "returns the 2nd value of X"),
        ("a b c d e f", "f e d c b a"),
        ("Größe des Feldes", "grosse des felds"),
        ("", "something"),
        ("...", "!!!"),
    ],
)
def test_equals_rouge_score(prediction, reference):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(
        ["rougeL"], use_stemmer=False
    )
    assert rouge_l(prediction, reference) == pytest.approx(
        scorer.score(reference, prediction)["rougeL"].fmeasure
    )


@pytest.mark.filterwarnings("ignore:.*give rouge_l a tokenizer")
@given(st.text(max_size=40), st.text(max_size=40))
def test_laws(a, b):
    assert rouge_l(a, b) == rouge_l(b, a)
    assert 0 <= rouge_l(a, b) <= 1
    assert rouge_l(a, a) in (0, 1)
