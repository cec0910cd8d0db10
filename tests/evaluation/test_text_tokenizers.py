"""ROUGE-L of texts that are not English, and of what is no text."""

import math
import warnings

import chat_families as families
import numpy as np
import pytest

from fedjax_fm.evaluation import rouge_l
from fedjax_fm.evaluation.text import longest_common_subsequence

CHINESE = "今天天气很好"


def by_hand(a: list, b: list) -> float:
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (CHINESE, CHINESE),
        (CHINESE, "今天天气不好"),
        ("Привет мир", "мир, привет"),
        ("a b", "b a"),
    ],
)
def test_a_tokenizer_scores_what_it_gives(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rouge_l(a, b, tokenizer=list) == pytest.approx(by_hand(list(a), list(b)))
        assert rouge_l(a, b, tokenizer=str.split) == pytest.approx(
            by_hand(a.split(), b.split())
        )
        ids = families.new_tokenizer()

        def encode(text):
            return ids.encode(text).tokens

        assert rouge_l(a, b, tokenizer=encode) == pytest.approx(
            by_hand(encode(a), encode(b))
        )
        assert rouge_l(CHINESE, CHINESE, tokenizer=list) == 1


def test_equals_rouge_score_with_the_same_tokenizer():
    scorers = pytest.importorskip("rouge_score.rouge_scorer")
    tokenizers = pytest.importorskip("rouge_score.tokenizers")

    class Letters(tokenizers.Tokenizer):
        def tokenize(self, text):
            return list(text)

    scorer = scorers.RougeScorer(["rougeL"], tokenizer=Letters())
    for a, b in ((CHINESE, "今天天气不好"), ("Größe", "große"), ("東京", "京都")):
        expected = scorer.score(b, a)["rougeL"].fmeasure
        assert rouge_l(a, b, tokenizer=list) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CHINESE, "no tokens"),
        ("...", "no tokens"),
        ("Привет", "no tokens"),
        (
            "2024年今天天气很好",
            "less than half",
        ),  # equal to every text with that number
        ("Всё хорошо, ok", "less than half"),
    ],
)
def test_texts_of_which_nothing_is_compared_are_told(text, words):
    with pytest.warns(
        UserWarning, match=rf"prediction.*{words}.*|{words}.*prediction.*"
    ) as seen:
        score = rouge_l(text, "2024 ok")
    assert "tokenizer" in str(seen[0].message)
    assert seen[0].filename == __file__
    if words == "no tokens":
        assert score == 0
    with pytest.warns(UserWarning, match=rf"reference.*{words}|{words}.*reference"):
        rouge_l("2024 ok", text)


@pytest.mark.parametrize(
    "text", ["", "  \n", "the cat", "Größe des Feldes", "naïve café", "a"]
)
def test_other_texts_are_not_told(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rouge_l(text, "the cat")


@pytest.mark.parametrize(
    "bad", [None, b"the cat", math.nan, 3, ["the", "cat"], np.array("the cat")]
)
def test_what_is_no_text(bad):
    with pytest.raises(TypeError, match="prediction: expected text"):
        rouge_l(bad, "the cat")
    with pytest.raises(TypeError, match="reference: expected text"):
        rouge_l("the cat", bad)


def test_what_is_no_tokenizer():
    with pytest.raises(
        TypeError, match=r"expected tokenizer as a function.*got a Tokenizer"
    ):
        rouge_l("a", "a", tokenizer=families.new_tokenizer())
    for function in (str.upper, len, iter, lambda text: {"input_ids": [1]}):
        with pytest.raises(
            TypeError, match="expected a list of tokens from the tokenizer, got a"
        ):
            rouge_l("a", "b", tokenizer=function)
    theirs = families.reference("x")
    with pytest.raises(
        TypeError,
        match="expected a list of tokens from the tokenizer, got a BatchEncoding",
    ):
        rouge_l("a", "b", tokenizer=theirs)
    assert rouge_l("a b", "a b", tokenizer=theirs.tokenize) == 1
