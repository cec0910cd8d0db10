"""Exact match and GSM8K's readings, against lm-eval's own filters and metric."""

import pytest

from fedjax_fm.evaluation import exact_match, gsm8k
from fedjax_fm.evaluation.exact import DROPPED, number_of

ANSWERS = [
    "Natalia sold 48/2 = 24 clips.\n#### 72",
    "#### 72.",
    "#### 1,000",
    "#### -3",
    "The answer is $1,000.",
    "72",
    "It is 72 dollars. Or 73?",
    "no number here",
    "so...",
    "#### 5\n#### 6",
    "",
    "It costs $8.50 each, 17 in all.",
    "#### seventy-two",
]
GOLD = "He has 10 + 62 = 72.\n#### 72"


def scores(answer, gold):
    found = gsm8k([answer], [gold])
    return tuple(int(found[name][0]) for name in ("strict", "flexible", "no_number"))


def test_the_gold_answer_is_right():
    assert scores(GOLD, GOLD) == (1, 1, 0)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("#### 1,000", "#### 1000"), ("#### 1000", "#### 1,000"), ("#### 72.", "#### 72")],
)
def test_commas_and_the_final_period_do_not_count(answer, gold):
    assert scores(answer, gold) == (1, 1, 0)


def test_dollars_do_not_count():
    assert scores("It is $72", GOLD) == (0, 1, 0)


def test_the_share_without_any_number_is_told():
    found = gsm8k(["seventy-two", "72", "7"], [GOLD] * 3)
    assert found["no_number"].tolist() == [1, 0, 0]
    assert found["flexible"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("behind", ["5", "#### 3", "\n#### 72", "no"])
def test_text_after_the_stop_string_cannot_matter(behind):
    for answer in ("#### 72", "It is 72", "It is 8"):
        assert scores(f"{answer}\n\nQuestion: {behind}", GOLD) == scores(answer, GOLD)


@pytest.mark.parametrize("how", ["strict", "flexible"])
def test_equals_the_harness(how):
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    metrics = pytest.importorskip("lm_eval.api.metrics")
    pattern, select = {
        "strict": (r"#### (\-?[0-9\.\,]+)", 0),
        "flexible": (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
    }[how]
    read = extraction.RegexFilter(regex_pattern=pattern, group_select=select)
    golds = [GOLD, "#### 1000", "#### -3", "#### 73"]
    for gold in golds:
        ours = gsm8k(ANSWERS, [gold] * len(ANSWERS))[how]
        for answer, own in zip(ANSWERS, ours, strict=True):
            ((extracted,),) = read.apply([[answer]], [{}])
            theirs = metrics.exact_match_hf_evaluate(
                predictions=[extracted],
                references=[gold],
                regexes_to_ignore=list(DROPPED),
                ignore_case=True,
            )
            assert own == theirs["exact_match"], (answer, gold)


@pytest.mark.parametrize("case", [False, True])
@pytest.mark.parametrize("punctuation", [False, True])
def test_exact_match_equals_the_harness(case, punctuation):
    metrics = pytest.importorskip("lm_eval.api.metrics")
    texts = ["A.", "a", "a!", "A", " a", "b", "$b", ""]
    for one in texts:
        for other in texts:
            how = {"ignore_case": case, "ignore_punctuation": punctuation}
            theirs = metrics.exact_match_hf_evaluate(
                predictions=[one], references=[other], **how
            )
            assert exact_match([one], [other], **how)[0] == theirs["exact_match"]


def test_numbers():
    assert number_of("#### 5\n#### 6") == "5"
    assert number_of("5 and 6", "flexible") == "6"
    assert number_of("none", "flexible") is None
    with pytest.raises(ValueError, match="how"):
        number_of("5", "last")


def test_refusals():
    with pytest.raises(ValueError, match="reference 0 has no `#### number`"):
        gsm8k(["72"], ["72"])
    with pytest.raises(ValueError, match="2 predictions, 1 references"):
        exact_match(["a", "b"], ["a"])
    with pytest.raises(TypeError, match=r"predictions\[0\]"):
        exact_match([None], ["a"])
    with pytest.raises(TypeError, match="expected references as a list"):
        exact_match(["a"], "a")
