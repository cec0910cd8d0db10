"""Scores of every example, their means, intervals and comparisons."""

from fedjax_fm.evaluation.evaluate import evaluate, means
from fedjax_fm.evaluation.intervals import (
    Comparison,
    holm,
    paired_examples,
    paired_seeds,
    plus_minus,
)
from fedjax_fm.evaluation.text import rouge_l

__all__ = [
    "Comparison",
    "evaluate",
    "holm",
    "means",
    "paired_examples",
    "paired_seeds",
    "plus_minus",
    "rouge_l",
]
