"""Scores of examples and texts, their means, intervals and comparisons."""

from fedjax_fm.evaluation.agreement import (
    AGREEMENTS,
    f1,
    matthews,
    pearson,
    spearman,
)
from fedjax_fm.evaluation.backdoor import Trigger, attack_success, with_trigger
from fedjax_fm.evaluation.choices import (
    Question,
    by_generation,
    by_likelihood,
    choice_summary,
    few_shot,
    lettered,
    score_answers,
    score_options,
)
from fedjax_fm.evaluation.clients import ClientScores, by_client, worst_decile
from fedjax_fm.evaluation.corpus import CorpusScore, bleu, chrf, corpus_rouge_l
from fedjax_fm.evaluation.evaluate import evaluate, means
from fedjax_fm.evaluation.exact import exact_match, gsm8k
from fedjax_fm.evaluation.generation import generate_until
from fedjax_fm.evaluation.intervals import (
    Comparison,
    holm,
    paired_examples,
    paired_seeds,
    plus_minus,
)
from fedjax_fm.evaluation.inversion import (
    Inverted,
    input_of_gradient,
    invert_gradient,
    nearest_tokens,
    token_f1,
    tokens_of_gradient,
)
from fedjax_fm.evaluation.language import (
    Likelihoods,
    loglikelihood,
    loglikelihood_rolling,
)
from fedjax_fm.evaluation.lm_eval import lm_eval_class, lm_eval_model
from fedjax_fm.evaluation.personal import PersonalScores, Spread, personal_scores
from fedjax_fm.evaluation.shifted import (
    Instances,
    ShiftedScores,
    by_instance,
    shifted_scores,
)
from fedjax_fm.evaluation.text import rouge_l
from fedjax_fm.evaluation.transfer import Transfer, transfer

__all__ = [
    "AGREEMENTS",
    "ClientScores",
    "Comparison",
    "CorpusScore",
    "Instances",
    "Inverted",
    "Likelihoods",
    "PersonalScores",
    "Question",
    "ShiftedScores",
    "Spread",
    "Transfer",
    "Trigger",
    "attack_success",
    "bleu",
    "by_client",
    "by_generation",
    "by_instance",
    "by_likelihood",
    "choice_summary",
    "chrf",
    "corpus_rouge_l",
    "evaluate",
    "exact_match",
    "f1",
    "few_shot",
    "generate_until",
    "gsm8k",
    "holm",
    "input_of_gradient",
    "invert_gradient",
    "lettered",
    "lm_eval_class",
    "lm_eval_model",
    "loglikelihood",
    "loglikelihood_rolling",
    "matthews",
    "means",
    "nearest_tokens",
    "paired_examples",
    "paired_seeds",
    "pearson",
    "personal_scores",
    "plus_minus",
    "rouge_l",
    "score_answers",
    "score_options",
    "shifted_scores",
    "spearman",
    "token_f1",
    "tokens_of_gradient",
    "transfer",
    "with_trigger",
    "worst_decile",
]
