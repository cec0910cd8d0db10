"""Judges that need nobody: a reference text, scores, likelihoods."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.exact import exact_match
from fedjax_fm.evaluation.judges.judge import Decision, Judge, Pair, by_scores
from fedjax_fm.evaluation.language import loglikelihood
from fedjax_fm.evaluation.text import rouge_l, words
from fedjax_fm.models.tokens import backend, without_padding

# (prompts, answers) -> a score of each answer.
Score = Callable[[Sequence[str], Sequence[str]], Any]


def rouge_judge(tokenizer: Callable[[str], list[str]] = words) -> Judge:
    """The answer with the higher ROUGE-L to the reference wins.

    Args:
      tokenizer: as of `rouge_l`; `list` scores by characters.

    Returns:
      A judge that says "error" of pairs without a reference.

    Raises:
      TypeError: a tokenizer that is no function.

    References:
      Lin, 2004, ROUGE, section 3.

    Example:
      >>> pair = Pair("Who sat?", "the cat sat", "a dog", "the cat")
      >>> rouge_judge().decide([pair])[0].verdict
      'a'
    """
    if not callable(tokenizer):
        raise TypeError(
            f"expected tokenizer as a function, got {checks.shown(tokenizer)}"
        )
    how = "" if tokenizer is words else f", tokens of {_named(tokenizer)}"

    def score(pair: Pair, answer: str) -> float:
        return rouge_l(answer, pair.reference, tokenizer)

    return Judge(f"ROUGE-L to the reference{how}", _with_reference(score))


def exact_judge(
    *, ignore_case: bool = False, ignore_punctuation: bool = False
) -> Judge:
    """The answer that equals the reference wins over one that does not.

    Args:
      ignore_case: whether "A" equals "a".
      ignore_punctuation: whether ASCII punctuation is dropped.

    Returns:
      A judge that says "error" of pairs without a reference.

    Raises:
      TypeError: a flag that is not True or False.

    Example:
      >>> exact_judge().decide([Pair("2 + 2?", "5", "4", "4")])[0].verdict
      'b'
    """
    how = {"ignore_case": ignore_case, "ignore_punctuation": ignore_punctuation}
    for name, value in how.items():
        checks.flag(name, value)
    said = [name.replace("_", " ") for name, value in how.items() if value]

    def score(pair: Pair, answer: str) -> float:
        found = exact_match(
            [answer],
            [pair.reference],
            ignore_case=ignore_case,
            ignore_punctuation=ignore_punctuation,
        )
        return float(found[0])

    return Judge(", ".join(["exact match", *said]), _with_reference(score))


def reward_judge(name: str, score: Score) -> Judge:
    """The answer that a reward model scores higher wins.

    Args:
      name: of the model, such as the digest of its weights; the judge is called "reward
        model NAME".
      score: `(prompts, answers) -> f[n]`.

    Returns:
      A judge.

    Raises:
      TypeError, ValueError: an empty name, or a score that is no function.

    Example:
      >>> def longer(prompts, answers):
      ...     return [len(answer) for answer in answers]
      >>> judge = reward_judge("of length, a control", longer)
      >>> judge.decide([Pair("Why?", "because", "so")])[0].verdict
      'a'
    """
    if not checks.text("name", name).strip():
        raise ValueError("expected the name of the reward model, got an empty text")
    if not callable(score):
        raise TypeError(
            "expected score as a function (prompts, answers) -> numbers, got "
            f"{checks.shown(score)}"
        )

    def decide(pairs: Sequence[Pair]) -> list[Decision]:
        prompts = [pair.prompt for pair in pairs]
        first, second = (
            _numbers(score(prompts, answers), len(pairs))
            for answers in ([p.a for p in pairs], [p.b for p in pairs])
        )
        return [by_scores(a, b) for a, b in zip(first, second, strict=True)]

    return Judge(f"reward model {name}", decide)


def likelihood_judge(
    name: str, model: Any, tokenizer: Any, *, batch_size: int = 16
) -> Judge:
    """The answer that a language model finds likelier, by the mean of its tokens, wins.

    Args:
      name: of the model; the judge is called "likelihood of NAME".
      model: a language model of `models`.
      tokenizer: of the model, of `tokenizers` or a fast one of transformers.
      batch_size: answers that are computed at once.

    Returns:
      A judge that says "error" of an empty prompt or answer.

    Raises:
      TypeError, ValueError: an empty name, a batch size below 1.

    Example:
      >>> from flax import nnx
      >>> from tokenizers import Tokenizer, models as words
      >>> from fedjax_fm import models
      >>> tokenizer = Tokenizer(words.WordLevel({f"w{i}": i for i in range(9)}, "w0"))
      >>> config = models.GPT2Config(
      ...     vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2
      ... )
      >>> model = models.GPT2LMHeadModel(config, nnx.Rngs(0))
      >>> likelihood_judge("a tiny one", model, tokenizer).name
      'likelihood of a tiny one, mean of tokens'
    """
    if not checks.text("name", name).strip():
        raise ValueError("expected the name of the model, got an empty text")
    checks.whole("batch_size", batch_size, least=1)

    def encode(text: str) -> list[int]:
        with without_padding(backend(tokenizer)) as inner:
            return inner.encode(text, add_special_tokens=False).ids

    def means(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        rows = zip(prompts, answers, strict=True)
        requests = [(encode(prompt), encode(answer)) for prompt, answer in rows]
        found = np.full(len(requests), np.nan)
        whole = [i for i, both in enumerate(requests) if all(both)]
        if whole:
            chosen = [requests[i] for i in whole]
            scored = loglikelihood(model, chosen, batch_size=batch_size)
            found[whole] = scored.sums / scored.tokens
        return found

    judge = reward_judge(name, means)
    return judge._replace(name=f"likelihood of {name}, mean of tokens")


def _with_reference(score: Callable[[Pair, str], float]):
    """`Judge.decide` of scores that need a reference."""

    def one(pair: Pair) -> Decision:
        if not pair.reference.strip():
            return Decision("error", "the pair has no reference")
        return by_scores(score(pair, pair.a), score(pair, pair.b))

    def decide(pairs: Sequence[Pair]) -> list[Decision]:
        return [one(pair) for pair in pairs]

    return decide


def _numbers(values: Any, n: int) -> list[float]:
    """Scores as numbers, one an answer."""
    found = np.asarray(values, np.float64)
    if found.shape != (n,):
        raise ValueError(
            f"expected one score an answer, f[{n}], got shape {list(found.shape)}"
        )
    return found.tolist()


def _named(function: Any) -> str:
    """A function's own name."""
    return getattr(function, "__name__", type(function).__name__)
