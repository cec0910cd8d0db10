"""Answers that are right or wrong as text: exact match, and GSM8K's two readings."""

import re
import string
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.generation import checked_stops, cut

# Of lm-eval's task gsm8k: how an answer is found, and what is dropped before comparing.
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
DROPPED = (r",", r"\$", r"(?s).*#### ", r"\.$")
STOPS = ("Question:", "</s>", "<|im_end|>")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    ignore: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
) -> np.ndarray:
    """Whether predictions equal their references, character by character.

    Blanks count: strip them if they should not.

    Args:
      predictions: n texts.
      references: n texts.
      ignore: regular expressions; what they match is dropped from both texts first.
      ignore_case: whether "A" equals "a".
      ignore_punctuation: whether ASCII punctuation is dropped.

    Returns:
      f64[n], each 0 or 1.

    Raises:
      TypeError: one is no text.
      ValueError: not one reference a prediction.

    Example:
      >>> exact_match(["$1,000", "b."], ["1000", "B"], ignore=[r"[$,.]"]).tolist()
      [1.0, 0.0]
    """
    checks.flag("ignore_case", ignore_case)
    checks.flag("ignore_punctuation", ignore_punctuation)
    check_pairs(predictions, references)

    def plain(text: str) -> str:
        for pattern in ignore:
            text = re.sub(pattern, "", text)
        text = text.lower() if ignore_case else text
        return text.translate(_NO_PUNCTUATION) if ignore_punctuation else text

    pairs = zip(predictions, references, strict=True)
    return np.array([float(plain(a) == plain(b)) for a, b in pairs])


def gsm8k(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    until: Sequence[str] = STOPS,
) -> dict[str, np.ndarray]:
    """Scores answers to GSM8K's questions, as lm-eval's task `gsm8k` does.

    Args:
      predictions: n answers.
      references: n answers of the data set, which end with `#### number`.
      until: stop strings, behind which an answer does not count; as the task has them.

    Returns:
      f64[n], each 0 or 1: "strict", the number after `####` is right; "flexible", the
      last number in the text is; "no_number", there is no digit in it. Report all
      three: the difference between the first two is form, not arithmetic.

    Raises:
      TypeError, ValueError: as `exact_match`; a reference without `#### number`.

    References:
      Cobbe et al., 2021, arXiv 2110.14168, section 2.

    Example:
      >>> found = gsm8k(["So 1,000.", "#### 72.", "none"], ["#### 1000"] * 3)
      >>> found["strict"].tolist(), found["flexible"].tolist()
      ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0])
      >>> found["no_number"].tolist()
      [0.0, 0.0, 1.0]
    """
    check_pairs(predictions, references)
    for number, reference in enumerate(references):
        if number_of(reference, "strict") is None:
            raise ValueError(
                f"reference {number} has no `#### number`: {reference!r:.60}"
            )
    stops = checked_stops(until)
    texts = [cut(text, stops) for text in predictions]

    def score(how: Literal["strict", "flexible"]) -> np.ndarray:
        read = [number_of(text, how) for text in texts]
        known = np.array([float(one is not None) for one in read])
        numbers = ["" if one is None else one for one in read]
        return known * exact_match(numbers, references, ignore=DROPPED)

    without = [float(re.search("[0-9]", text) is None) for text in texts]
    return {
        "strict": score("strict"),
        "flexible": score("flexible"),
        "no_number": np.array(without),
    }


def number_of(text: str, how: Literal["strict", "flexible"] = "strict") -> str | None:
    r"""The number that an answer to a question of GSM8K ends with, as text.

    Args:
      text: the answer.
      how: "strict", the first number after `#### `; "flexible", the last number
        anywhere. As in lm-eval, two dots in a row pass for a number there.

    Returns:
      The number as it is written; None where there is none.

    Raises:
      ValueError: another `how`.

    Example:
      >>> number_of("5 + 3 = 8, so\n#### 8"), number_of("It is $8.50", "flexible")
      ('8', '$8.50')
    """
    checks.choice("how", how, ("strict", "flexible"))
    if how == "strict":
        found = STRICT.search(text)
        return found[1].strip() if found else None
    last = [match[0] for match in FLEXIBLE.finditer(text)][-1:]
    return last[0] if last else None


def check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    """Raises unless there is a text for each text.

    Args:
      predictions: n texts.
      references: n texts.

    Raises:
      TypeError: a text in the place of a list, or something else in that of a text.
      ValueError: their numbers differ, or a text cannot be encoded.
    """
    both = {"predictions": predictions, "references": references}
    for name, texts in both.items():
        if isinstance(texts, str):
            raise TypeError(f"expected {name} as a list of texts, got {texts!r:.60}")
        for row, text in enumerate(texts):
            checks.text(f"{name}[{row}]", text)
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions, {len(references)} references"
        )
