"""What the quality filters measure of a text."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
BULLETS = ("•", "‣", "▪", "-", "*")
ELLIPSES = ("...", "…")


class Repeated(NamedTuple):
    """What of a text's parts stood before.

    Attributes:
      share: of the parts.
      characters: share of the text's characters that are in them.
    """

    share: float
    characters: float


class Measured(NamedTuple):
    """A text in numbers.

    Attributes:
      words: what blanks separate.
      n_characters: of the text, at least 1.
      mean_length: characters of a word.
      symbols: the larger of "#" a word and "..." a word.
      bullets: share of lines that begin with one.
      ellipses: share of lines that end with one.
      alphabetic: share of words with a letter.
      stop_words: different ones.
      lines: that are repeated.
      paragraphs: that are repeated.
    """

    words: list[str]
    n_characters: int
    mean_length: float
    symbols: float
    bullets: float
    ellipses: float
    alphabetic: float
    stop_words: int
    lines: Repeated
    paragraphs: Repeated

    @property
    def n_words(self) -> int:
        """How many words there are."""
        return len(self.words)


def measured(text: str) -> Measured:
    """All that takes one pass.

    Args:
      text: any.
    """
    words, stripped = text.split(), [line.strip() for line in text.splitlines()]
    lines = [line for line in stripped if line]
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip()) if part]
    n = max(len(words), 1)
    n_ellipses = sum(text.count(mark) for mark in ELLIPSES)
    bare = {word.strip(".,;:!?'\"()").lower() for word in words}
    lettered = [word for word in words if any(map(str.isalpha, word))]
    begun = [line for line in lines if line.startswith(BULLETS)]
    ended = [line for line in lines if line.endswith(ELLIPSES)]
    return Measured(
        words=words,
        n_characters=max(len(text), 1),
        mean_length=sum(map(len, words)) / n,
        symbols=max(text.count("#"), n_ellipses) / n,
        bullets=len(begun) / max(len(lines), 1),
        ellipses=len(ended) / max(len(lines), 1),
        alphabetic=len(lettered) / n,
        stop_words=len(bare & STOP_WORDS),
        lines=_repeated(lines, len(text)),
        paragraphs=_repeated(paragraphs, len(text)),
    )


def _repeated(parts: Sequence[str], n_characters: int) -> Repeated:
    """Shares of the parts that stood before."""
    counts = Counter(parts)
    n_again = len(parts) - len(counts)
    characters = sum((count - 1) * len(part) for part, count in counts.items())
    return Repeated(n_again / max(len(parts), 1), characters / max(n_characters, 1))


def top_ngram(words: Sequence[str], n: int) -> int:
    """Characters in the most frequent run of n words; 0 where none comes twice.

    Of runs that are as frequent the longest counts. Runs that overlap count each time.

    Args:
      words: of a text.
      n: words of a run.

    Returns:
      Characters, with a blank between two words of a run.

    Example:
      >>> top_ngram("to be or not to be".split(), 2)
      10
    """
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0
    longest = max(len(" ".join(run)) for run, count in counts.items() if count == most)
    return most * longest


def repeated_ngrams(words: Sequence[str], n: int) -> int:
    """Characters in runs of n words that stood before, none counted twice.

    Args:
      words: of a text.
      n: words of a run.

    Returns:
      Characters, without blanks.

    Example:
      >>> repeated_ngrams("a b c a b c a b c".split(), 3)
      6
    """
    seen: set[tuple[str, ...]] = set()
    found = place = 0
    while place + n <= len(words):
        run = tuple(words[place : place + n])
        if run in seen:
            found += sum(map(len, run))
            place += n
        else:
            seen.add(run)
            place += 1
    return found
