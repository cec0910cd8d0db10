"""Scores of generated text against a reference.

ROUGE-L: Lin, 2004, ROUGE: A Package for Automatic Evaluation of Summaries, section 3;
words as in Google's `rouge-score` without a stemmer (lower case, letters and digits),
with which the tests compare.
"""

import re
import warnings
from collections.abc import Callable

import numpy as np

from fedjax_fm import checks


def words(text: str) -> list[str]:
    """Lower-case runs of a-z and 0-9: English alone, as Google's `rouge-score` has it."""
    return re.findall(r"[a-z0-9]+", text.lower())


def longest_common_subsequence(a: list, b: list) -> int:
    """Its length; symmetric."""
    if not a or not b:
        return 0
    number = {word: i for i, word in enumerate(dict.fromkeys([*a, *b]))}
    row = np.zeros(len(b) + 1, np.int64)
    other = np.array([number[word] for word in b])
    for word in a:
        # row[j] = max over the three ways to get there; the running maximum is the step
        # within the row.
        diagonal = np.where(other == number[word], row[:-1] + 1, 0)
        row[1:] = np.maximum.accumulate(np.maximum(row[1:], diagonal))
    return int(row[-1])


def rouge_l(
    prediction: str, reference: str, tokenizer: Callable[[str], list[str]] = words
) -> float:
    """F1 of the longest common subsequence of tokens, 0 to 1.

    1 for equal texts, 0 where either has no token.

    With L the length of the subsequence: F1 = 2 L / (tokens of the prediction + tokens
      of the reference).

    Args:
      prediction, reference: text.
      tokenizer: text -> its tokens; `list` scores by characters. The default knows a-z
        and 0-9 only, so that of other scripts nothing, or numbers alone, would be left.

    Raises:
      TypeError, ValueError: no text (None, bytes, NaN), or a tokenizer that gives no list.

    Warns:
      UserWarning: a text that is not blank has no tokens, or of its letters and digits
        less than half are in the tokens of the default.

    Example:
      >>> rouge_l("the cat sat", "the cat")
      0.8
      >>> rouge_l("今天天气很好", "今天天气不好", tokenizer=list)
      0.8333333333333334
    """
    a = _tokens("prediction", prediction, tokenizer)
    b = _tokens("reference", reference, tokenizer)
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _tokens(name: str, text: str, tokenizer: Callable[[str], list[str]]) -> list[str]:
    """The tokens of a text, with a warning where they say little of it."""
    checks.text(name, text)
    if not callable(tokenizer):
        raise TypeError(
            "expected tokenizer as a function from text to a list of tokens, got "
            f"a {type(tokenizer).__name__}; of a `tokenizers.Tokenizer` that is "
            "lambda text: tokenizer.encode(text).tokens"
        )
    found = tokenizer(text)
    if not isinstance(found, (list, tuple)):
        raise TypeError(
            "expected a list of tokens from the tokenizer, got a "
            f"{type(found).__name__} for {text!r:.60}"
        )
    if text.strip() and not found:
        _warn(f"a {name} that is not blank has no tokens and scores 0")
    elif tokenizer is words and 2 * sum(map(len, found)) < sum(map(str.isalnum, text)):
        _warn(f"of a {name} less than half is compared: a-z and 0-9 alone")
    return list(found)


def _warn(message: str) -> None:
    """The same words for all texts: Python then shows them once for each place that scores."""
    warnings.warn(
        f"{message}; give rouge_l a tokenizer, such as `list` for characters",
        stacklevel=4,
    )
