"""Scores of many texts against references, each with the signature to report it by.

BLEU and chrF are sacrebleu's (the extra `eval`); two BLEU scores can be compared only
where their signatures agree.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.exact import check_pairs
from fedjax_fm.evaluation.text import rouge_l, words
from fedjax_fm.version import __version__

References = Sequence[str] | Sequence[Sequence[str]]


class CorpusScore(NamedTuple):
    """A score of a set of texts, and how it was computed.

    Attributes:
      score: 0 to 100 for BLEU and chrF, 0 to 1 for ROUGE-L, as their papers have it.
      signature: what has to be reported beside it.
    """

    score: float
    signature: str


def bleu(
    predictions: Sequence[str], references: References, **options: Any
) -> CorpusScore:
    """BLEU of a corpus, by sacrebleu.

    It is no mean of sentences: n-grams are counted over all texts. Give whole texts, as
    people would read them; sacrebleu splits them itself.

    Args:
      predictions: n texts.
      references: n texts, or n lists of as many texts each.
      **options: of `sacrebleu.metrics.BLEU`, such as `tokenize="zh"` or `lowercase`.

    Returns:
      `CorpusScore`, of 0 to 100.

    Raises:
      ImportError: sacrebleu is not installed.
      TypeError, ValueError: not one text, or list of texts, a prediction.

    References:
      Papineni et al., 2002, BLEU; Post, 2018, arXiv 1804.08771, section 4 (signatures).

    Example:
      >>> found = bleu(["The cat sat."], ["The cat sat."])  # doctest: +SKIP
      >>> found.signature  # doctest: +SKIP
      'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0'
    """
    return _by_sacrebleu("BLEU", predictions, references, options)


def chrf(
    predictions: Sequence[str], references: References, **options: Any
) -> CorpusScore:
    """ChrF of a corpus, an F-score of character n-grams, by sacrebleu.

    Args:
      predictions: n texts.
      references: n texts, or n lists of as many texts each.
      **options: of `sacrebleu.metrics.CHRF`; `word_order=2` is chrF++.

    Returns:
      `CorpusScore`, of 0 to 100.

    Raises:
      ImportError: sacrebleu is not installed.
      TypeError, ValueError: not one text, or list of texts, a prediction.

    References:
      Popović, 2015, chrF: character n-gram F-score for automatic MT evaluation.

    Example:
      >>> chrf(["The cat sat."], ["The cat sat."]).score  # doctest: +SKIP
      100.0
    """
    return _by_sacrebleu("CHRF", predictions, references, options)


def corpus_rouge_l(
    predictions: Sequence[str],
    references: Sequence[str],
    tokenizer: Callable[[str], list[str]] = words,
) -> CorpusScore:
    """The mean of ROUGE-L's F1 over texts.

    There is no stemmer, and the signature says so: scores with one are higher. For the
    score of each text take `rouge_l`.

    Args:
      predictions: n texts, n >= 1.
      references: n texts.
      tokenizer: as of `rouge_l`.

    Returns:
      `CorpusScore`, of 0 to 1.

    Raises:
      TypeError, ValueError: not one text a prediction, or none at all.

    References:
      Lin, 2004, ROUGE: A Package for Automatic Evaluation of Summaries, section 3.

    Example:
      >>> found = corpus_rouge_l(["the cat sat", "no"], ["the cat", "yes"])
      >>> found.score
      0.4
      >>> found.signature.partition("|version")[0]
      'rougeL|f1|mean:texts|use_stemmer:no|tok:a-z0-9'
    """
    check_pairs(predictions, references)
    if not len(predictions):
        raise ValueError("nothing to score: there are no texts")
    pairs = zip(predictions, references, strict=True)
    each = [rouge_l(prediction, text, tokenizer) for prediction, text in pairs]
    own = getattr(tokenizer, "__name__", type(tokenizer).__name__)
    name = "a-z0-9" if tokenizer is words else own
    signature = f"rougeL|f1|mean:texts|use_stemmer:no|tok:{name}|version:fedjax-fm "
    return CorpusScore(float(np.mean(each)), signature + __version__)


def _by_sacrebleu(
    metric: str,
    predictions: Sequence[str],
    references: References,
    options: dict[str, Any],
) -> CorpusScore:
    """The corpus score and signature of a metric of sacrebleu."""
    try:
        import sacrebleu.metrics as metrics
    except ImportError as error:
        raise ImportError(
            f"{metric} needs sacrebleu: pip install 'fedjax-fm[eval]'"
        ) from error
    streams = _streams(predictions, references)
    scorer = getattr(metrics, metric)(**options)
    found = scorer.corpus_score(list(predictions), streams)
    return CorpusScore(float(found.score), str(scorer.get_signature()))


def _streams(predictions: Sequence[str], references: References) -> list[list[str]]:
    """References as sacrebleu takes them: lists of n, one for each of a text's own."""
    several = [[one] if isinstance(one, str) else list(one) for one in references]
    if not len(predictions):
        raise ValueError("nothing to score: there are no texts")
    numbers = {len(texts) for texts in several}
    if len(several) != len(predictions) or len(numbers) != 1 or 0 in numbers:
        raise ValueError(
            f"expected references of {len(predictions)} texts, as many for each, got "
            f"{len(several)} with {sorted(numbers)} each"
        )
    for row, texts in enumerate(several):
        for text in texts:
            checks.text(f"references[{row}]", text)
    check_pairs(predictions, [texts[0] for texts in several])
    return [list(stream) for stream in zip(*several, strict=True)]
