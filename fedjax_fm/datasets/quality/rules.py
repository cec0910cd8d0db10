"""Bounds of the quality filters of Gopher and RefinedWeb, and which one a text breaks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fedjax_fm import checks
from fedjax_fm.datasets.quality import measures
from fedjax_fm.datasets.quality.measures import Measured

Ngrams = tuple[tuple[int, float], ...]  # (words, most)


@dataclass(frozen=True)
class Rules:
    """What a text has to keep to. `math.inf` (of a least: 0) switches a bound off.

    Words are what blanks separate; shares of lines are of lines that are not empty;
    characters are counted with blanks. The defaults are Gopher's, and for lines what
    DCLM's authors took from RefinedWeb's text, which gives no number for "mainly upper
    case".

    Attributes:
      least_words: of a text.
      most_words: of a text.
      least_mean_length: characters of a word, in the mean.
      most_mean_length: likewise.
      most_symbols: "#", and "..." by itself, a word.
      most_bullets: share of lines that begin with a bullet.
      most_ellipses: share of lines that end with "...".
      least_alphabetic: share of words with a letter.
      least_stop_words: different ones of the, be, to, of, and, that, have, with.
      most_repeated_lines: share of lines that stood before.
      most_repeated_line_characters: share of the characters that are in them.
      most_repeated_paragraphs: as for lines.
      most_repeated_paragraph_characters: as for lines.
      top_ngrams: (n, share of characters in the most frequent run of n words).
      repeated_ngrams: (n, share of characters in runs of n words that stood before).
      most_uppercase: share of a line's characters; lines with more are taken out.
      short_line: words up to which "sign-in", "read more..." and "items in cart" are
        cut out of a line.
      most_removed: share of words that may be in lines which are taken out or cut; a
        text with more of them is dropped. 0 leaves all lines as they are.

    Raises:
      TypeError, ValueError: a bound that is no number, or is negative.

    References:
      Rae et al. 2021, arXiv 2112.11446, appendix A.1.1 and table A1; Penedo et al. 2023,
      arXiv 2306.01116, appendix G.2; Li et al. 2024 (DCLM), arXiv 2406.11794, by its
      code.

    Example:
      >>> rules = Rules(least_words=3, least_stop_words=0)
      >>> first_reason("now is the winter of our discontent", rules)
      >>> first_reason("exeunt", rules)
      'few words'
    """

    least_words: float = 50
    most_words: float = 100_000
    least_mean_length: float = 3
    most_mean_length: float = 10
    most_symbols: float = 0.1
    most_bullets: float = 0.9
    most_ellipses: float = 0.3
    least_alphabetic: float = 0.8
    least_stop_words: float = 2
    most_repeated_lines: float = 0.3
    most_repeated_line_characters: float = 0.2
    most_repeated_paragraphs: float = 0.3
    most_repeated_paragraph_characters: float = 0.2
    top_ngrams: Ngrams = ((2, 0.20), (3, 0.18), (4, 0.16))
    repeated_ngrams: Ngrams = (
        *((5, 0.15), (6, 0.14), (7, 0.13)),
        *((8, 0.12), (9, 0.11), (10, 0.10)),
    )
    most_uppercase: float = 0.5
    short_line: float = 10
    most_removed: float = 0.05

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("top_ngrams", "repeated_ngrams"):
                _check_ngrams(name, value)
            else:
                checks.real(name, value, least=0, infinite=True)


def _check_ngrams(name: str, value: Ngrams) -> None:
    if not isinstance(value, tuple):
        raise TypeError(
            f"expected {name} as pairs (words, most), got {name}={value!r}; write () "
            "for no bound"
        )
    for words, most in value:
        checks.whole(name, words, least=1)
        checks.real(name, most, least=0, infinite=True)


WEB = Rules()
# Ours: questions and answers may be a word or a number. What is repeated is still bounded.
INSTRUCTION = Rules(
    least_words=1,
    least_mean_length=0,
    most_mean_length=math.inf,
    least_alphabetic=0,
    least_stop_words=0,
    most_removed=0,
)


def first_reason(text: str, rules: Rules = WEB) -> str | None:
    """Why a text is dropped, by the first bound that it breaks.

    Args:
      text: any.
      rules: the bounds.

    Returns:
      The reason in words, or None for a text that stays.

    Raises:
      TypeError, ValueError: no text.

    Example:
      >>> first_reason("buy now " * 60)
      'few stop words'
      >>> first_reason("to purchase the now " * 60)
      'the most frequent run of 2 words'
    """
    checks.text("text", text)
    checks.instance("rules", rules, Rules, "write quality.Rules()")
    return next(_reasons(measures.measured(text), rules), None)


def _reasons(found: Measured, rules: Rules) -> Iterator[str]:
    """The reasons, in the order in which they are looked for."""
    n = found.n_words
    bounds = (
        ("few words", n < rules.least_words),
        ("many words", n > rules.most_words),
        ("short words", found.mean_length < rules.least_mean_length),
        ("long words", found.mean_length > rules.most_mean_length),
        ("symbols", found.symbols > rules.most_symbols),
        ("bullets", found.bullets > rules.most_bullets),
        ("ellipses", found.ellipses > rules.most_ellipses),
        ("few letters", found.alphabetic < rules.least_alphabetic),
        ("few stop words", found.stop_words < rules.least_stop_words),
    )
    yield from (reason for reason, broken in bounds if broken)
    yield from _repeated(found, rules)


def _repeated(found: Measured, rules: Rules) -> Iterator[str]:
    """The reasons of repetition."""
    paragraphs, lines = found.paragraphs, found.lines
    bounds = (
        ("repeated paragraphs", paragraphs.share, rules.most_repeated_paragraphs),
        (
            "characters of repeated paragraphs",
            paragraphs.characters,
            rules.most_repeated_paragraph_characters,
        ),
        ("repeated lines", lines.share, rules.most_repeated_lines),
        (
            "characters of repeated lines",
            lines.characters,
            rules.most_repeated_line_characters,
        ),
    )
    yield from (reason for reason, share, most in bounds if share > most)
    for n, most in rules.top_ngrams:
        if measures.top_ngram(found.words, n) / found.n_characters > most:
            yield f"the most frequent run of {n} words"
    for n, most in rules.repeated_ngrams:
        if measures.repeated_ngrams(found.words, n) / found.n_characters > most:
            yield f"repeated runs of {n} words"
