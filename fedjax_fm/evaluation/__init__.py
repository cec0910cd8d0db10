"""Scores, intervals and comparisons."""

from fedjax_fm.evaluation.classification import Evaluator, Results, by_client
from fedjax_fm.evaluation.evaluate import evaluate, means
from fedjax_fm.evaluation.intervals import (
    Comparison,
    holm,
    paired_examples,
    paired_seeds,
    plus_minus,
)
from fedjax_fm.evaluation.perplexity import (
    PerplexityEvaluator,
    TokenLosses,
    perplexity_by_client,
)
from fedjax_fm.evaluation.text import rouge_l

__all__ = [
    "Comparison",
    "Evaluator",
    "PerplexityEvaluator",
    "Results",
    "TokenLosses",
    "by_client",
    "evaluate",
    "holm",
    "means",
    "paired_examples",
    "paired_seeds",
    "perplexity_by_client",
    "plus_minus",
    "rouge_l",
]
