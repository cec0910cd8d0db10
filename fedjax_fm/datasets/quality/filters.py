"""The filters that a client runs on its own texts before it trains."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.datasets.quality.lines import correct_lines
from fedjax_fm.datasets.quality.minhash import check_texts
from fedjax_fm.datasets.quality.rules import WEB, Rules, first_reason


class Filtered(NamedTuple):
    """What is left of a client's texts.

    Attributes:
      texts: that stay, without lines that say nothing.
      kept: i64[texts], their numbers among those that came in.
      reasons: {why: how many were dropped}, which may be told; it holds no text.
    """

    texts: list[str]
    kept: np.ndarray
    reasons: dict[str, int]


def filter_texts(texts: Sequence[str], rules: Rules = WEB) -> Filtered:
    """Drops texts that break a rule; looks at each text by itself.

    Lines that say nothing are taken out first, and a text with many of them is dropped;
    then the bounds of `Rules` are looked at. What stays would all stay once more. A
    client without a text left takes no part, as any client without examples.

    Args:
      texts: of one client.
      rules: the bounds: `WEB` for pages, `INSTRUCTION` for questions and answers.

    Returns:
      The texts that stay, and how many went for which reason.

    Raises:
      TypeError, ValueError: no texts.

    References:
      Penedo et al. 2023, arXiv 2306.01116, section 3 (the order of the filters).

    Example:
      >>> from fedjax_fm.datasets.quality import INSTRUCTION
      >>> found = filter_texts(["What is 2 + 2?", "no no no no"], INSTRUCTION)
      >>> found.texts, found.reasons
      (['What is 2 + 2?'], {'the most frequent run of 2 words': 1})
    """
    check_texts(texts)
    checks.instance("rules", rules, Rules, "write quality.Rules()")
    stays: list[str] = []
    kept: list[int] = []
    reasons: Counter[str] = Counter()
    for number, text in enumerate(texts):
        corrected, reason = _judged(text, rules)
        if reason is None:
            stays.append(corrected)
            kept.append(number)
        else:
            reasons[reason] += 1
    return Filtered(stays, np.array(kept, np.int64), dict(reasons))


def _judged(text: str, rules: Rules) -> tuple[str, str | None]:
    """A text without lines that say nothing, and why it is dropped, if it is."""
    if rules.most_removed:
        found = correct_lines(text, rules)
        if found.removed > rules.most_removed:
            return text, "lines that say nothing"
        text = found.text
    return text, first_reason(text, rules)
