"""BLEU, chrF and ROUGE-L of sets of texts, against their reference packages."""

import sys

import numpy as np
import pytest

from fedjax_fm.evaluation import bleu, by_client, chrf, corpus_rouge_l

PREDICTIONS = [
    "The cat sat on the mat.",
    "He said: it is 3 o'clock, is it not?",
    "A dog barks loudly at night.",
    "",
]
REFERENCES = [
    "The cat is on the mat.",
    "He said it was 3 o'clock, was it not?",
    "Dogs bark at night.",
    "Something.",
]
OTHERS = ["A cat sat on a mat.", "It is three, he said.", "The dog barked.", "Thing."]


@pytest.mark.parametrize("options", [{}, {"lowercase": True, "tokenize": "char"}])
def test_bleu_is_sacrebleus(options):
    metrics = pytest.importorskip("sacrebleu.metrics")
    own = bleu(PREDICTIONS, REFERENCES, **options)
    scorer = metrics.BLEU(**options)
    assert own.score == scorer.corpus_score(PREDICTIONS, [REFERENCES]).score
    assert own.signature == str(scorer.get_signature())
    assert "nrefs:1" in own.signature
    assert "version:" in own.signature


@pytest.mark.parametrize("options", [{}, {"word_order": 2}])
def test_chrf_is_sacrebleus_with_several_references(options):
    metrics = pytest.importorskip("sacrebleu.metrics")
    pairs = list(zip(REFERENCES, OTHERS, strict=True))
    own = chrf(PREDICTIONS, pairs, **options)
    scorer = metrics.CHRF(**options)
    assert own.score == scorer.corpus_score(PREDICTIONS, [REFERENCES, OTHERS]).score
    assert own.signature == str(scorer.get_signature())
    assert "nrefs:2" in own.signature


def test_bleu_of_a_text_with_itself_is_100():
    pytest.importorskip("sacrebleu")
    assert bleu(REFERENCES, REFERENCES).score == pytest.approx(100)


def test_bleu_of_four_words_by_hand():
    pytest.importorskip("sacrebleu")
    # "a b c d e" against "a b c d f": precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty.
    found = bleu(["a b c d e"], ["a b c d f"])
    assert found.score == pytest.approx(
        100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, rel=1e-6
    )


def test_rouge_l_is_the_mean_of_rouge_scores():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(
        ["rougeL"], use_stemmer=False
    )
    each = [
        scorer.score(reference, prediction)["rougeL"].fmeasure
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    found = corpus_rouge_l(PREDICTIONS, REFERENCES)
    assert found.score == pytest.approx(np.mean(each))
    assert "use_stemmer:no" in found.signature
    assert "tok:list" in corpus_rouge_l(["ab"], ["ac"], list).signature


def test_a_corpus_score_client_by_client():
    pytest.importorskip("sacrebleu")
    predictions, references = np.array(PREDICTIONS * 2), np.array(REFERENCES * 2)
    clients = np.array([0, 0, 1, 1, 2, 2, 2, 2])

    def score(rows):
        return bleu(predictions[rows], references[rows])

    found = by_client(score, clients, higher_is_better=True, held_out=[2])
    parts = [
        bleu(PREDICTIONS[:2], REFERENCES[:2]),
        bleu(PREDICTIONS[2:], REFERENCES[2:]),
    ]
    scores = [part.score for part in parts]
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.worst_decile == pytest.approx(min(scores))
    assert found.held_out == pytest.approx(bleu(PREDICTIONS, REFERENCES).score)
    # A corpus score is no mean of its parts.
    assert found.pooled != pytest.approx(np.mean(list(found.each.values())))


@pytest.mark.parametrize("score", [bleu, chrf, corpus_rouge_l])
def test_refusals(score):
    pytest.importorskip("sacrebleu")
    with pytest.raises(ValueError, match="nothing to score"):
        score([], [])
    with pytest.raises(ValueError):
        score(["a", "b"], ["a"])
    with pytest.raises(TypeError):
        score([None], ["a"])
    with pytest.raises(TypeError):
        score(["a"], [None])


def test_lists_of_different_lengths_are_refused():
    pytest.importorskip("sacrebleu")
    with pytest.raises(ValueError, match="as many for each, got 2 with"):
        bleu(["a", "b"], [["a"], ["b", "c"]])


def test_without_sacrebleu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax-fm\[eval\]'"):
        bleu(["a"], ["a"])
