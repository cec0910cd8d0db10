"""Lines that say nothing: RefinedWeb's corrections, line by line."""

import re
from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.datasets.quality.rules import WEB, Rules

COUNTED = "likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes"
COUNTER = re.compile(
    rf"\W*\d[\d,.]*[kmb]?\s+({COUNTED}|downloads|views|followers)\W*", re.IGNORECASE
)
CUT = re.compile(r"^sign-in\b\s*|\s*\bread more\.\.\.$|\s*\bitems in cart\b", re.I)


class Corrected(NamedTuple):
    """A text without the lines that say nothing.

    Attributes:
      text: what is left.
      removed: share of its words that stood in lines which were taken out or cut.
    """

    text: str
    removed: float


def correct_lines(text: str, rules: Rules = WEB) -> Corrected:
    r"""Takes out headings in upper case, numbers, counters, single words and buttons.

    A line goes if more than `most_uppercase` of its characters are upper case, if it is
    all digits, if it counts ("3 likes"), or if it is one word. Out of lines of at most
    `short_line` words "sign-in" is cut at the beginning, "read more..." at the end, and
    "items in cart" anywhere. Lines that are empty stay. What is left does not change if
    it is corrected once more.

    Args:
      text: any.
      rules: of which those three bounds are read.

    Returns:
      The text, and the share of words that `most_removed` bounds.

    Raises:
      TypeError, ValueError: no text.

    References:
      Penedo et al. 2023, arXiv 2306.01116, appendix G.2. The words of counters and the
      half of upper case are those of DCLM's code.

    Example:
      >>> page = "A day at the sea\nMENU AND MORE\nIt was cold. Read more..."
      >>> correct_lines(page).text
      'A day at the sea\nIt was cold.'
      >>> round(correct_lines(page).removed, 2)
      0.62
    """
    checks.text("text", text)
    checks.instance("rules", rules, Rules, "write quality.Rules()")
    kept, flagged, n_words = [], 0, len(text.split())
    for line in text.split("\n"):
        left = _without_buttons(line, rules.short_line)
        says_nothing = bool(left.strip()) and _says_nothing(left, rules.most_uppercase)
        is_emptied = bool(line.strip()) and not left.strip()
        if left != line or says_nothing:
            flagged += len(line.split())
        if not (says_nothing or is_emptied):
            kept.append(left)
    return Corrected("\n".join(kept), flagged / max(n_words, 1))


def _without_buttons(line: str, short: float) -> str:
    """A short line without what is written on buttons, as often as it stands there."""
    if len(line.split()) > short:
        return line
    before = None
    while line != before:
        before, line = line, CUT.sub("", line)
    return line


def _says_nothing(line: str, most_uppercase: float) -> bool:
    """Whether a line goes as a whole."""
    upper = sum(map(str.isupper, line)) / len(line)
    is_number = line.strip().isdigit()
    is_counter = COUNTER.fullmatch(line.strip()) is not None
    return upper > most_uppercase or is_number or is_counter or len(line.split()) == 1
