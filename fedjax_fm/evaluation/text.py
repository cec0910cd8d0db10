"""Scores of generated text against a reference text.

Words are those of Google's `rouge-score` without a stemmer (lower case, letters and
digits); the tests compare with that package.
"""

import re
import warnings
from collections.abc import Callable

import numpy as np

from fedjax_fm import checks


def words(text: str) -> list[str]:
    """Splits English text into lower-case runs of a-z and 0-9, as `rouge-score` does.

    Args:
      text: any; characters other than ASCII letters and digits separate words.

    Returns:
      The words in order.

    Example:
      >>> words("It's 3 o'clock")
      ['it', 's', '3', 'o', 'clock']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def longest_common_subsequence(a: list, b: list) -> int:
    """Length of the longest common subsequence of two lists, in O(len(a) len(b)).

    Args:
      a: hashable tokens.
      b: hashable tokens.

    Returns:
      The length; 0 where either is empty.

    Example:
      >>> longest_common_subsequence(list("abcd"), list("xbyd"))
      2
    """
    if not a or not b:
        return 0
    number = {word: i for i, word in enumerate(dict.fromkeys([*a, *b]))}
    row = np.zeros(len(b) + 1, np.int64)
    other = np.array([number[word] for word in b])
    for word in a:
        # row[j] is the maximum of three: the row above, the diagonal, and the entry to
        # the left, which the running maximum adds.
        diagonal = np.where(other == number[word], row[:-1] + 1, 0)
        best = np.maximum(row[1:], diagonal)
        row[1:] = np.maximum.accumulate(best)
    return int(row[-1])


def rouge_l(
    prediction: str, reference: str, tokenizer: Callable[[str], list[str]] = words
) -> float:
    """ROUGE-L: F1 of the longest common subsequence of tokens.

        F1 = 2 L / (m + n)

    with m and n tokens in prediction and reference, and L in their longest common
    subsequence.

    Args:
      prediction: generated text.
      reference: the text that it is compared with.
      tokenizer: `text -> list of tokens`; `list` scores by characters. The default
        knows a-z and 0-9 only: of other scripts it keeps nothing, or only the numbers.

    Returns:
      A number in [0, 1]: 1 for equal tokens, 0 where either text has none.

    Raises:
      TypeError: an argument is not text, or the tokenizer returns no list.
      ValueError: a text cannot be encoded (half of a surrogate pair).

    Warns:
      UserWarning: a text that is not blank has no tokens, or the default tokenizer
        keeps less than half of its letters and digits.

    References:
      Lin (2004). ROUGE: A Package for Automatic Evaluation of Summaries. Section 3.

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
    """The tokens of a text; warns where they hold little of it."""
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
    elif tokenizer is words and _is_mostly_lost(text, found):
        _warn(f"of a {name} less than half is compared: a-z and 0-9 alone")
    return list(found)


def _is_mostly_lost(text: str, tokens: list[str]) -> bool:
    """Whether the tokens keep less than half of the text's letters and digits."""
    kept = sum(len(token) for token in tokens)
    present = sum(character.isalnum() for character in text)
    return 2 * kept < present


def _warn(message: str) -> None:
    """Warns without quoting the text, so that Python shows the warning once a place."""
    warnings.warn(
        f"{message}; give rouge_l a tokenizer, such as `list` for characters",
        stacklevel=4,
    )
