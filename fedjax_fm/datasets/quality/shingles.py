"""Texts as sets of runs of words."""

import functools
import re
import unicodedata

from fedjax_fm import checks

DIGITS = re.compile(r"\d+")


def normalised(text: str, *, keep_digits: bool = True) -> str:
    """A text in lower case, NFC, without punctuation, its blanks as one each.

    Args:
      text: any.
      keep_digits: whether numbers stay as they are; otherwise each becomes one 0, so
        that texts that differ in dates and prices alone are the same.

    Returns:
      Words with one blank between two of them.

    Raises:
      TypeError, ValueError: no text.

    Example:
      >>> normalised("To be -- or NOT to be?")
      'to be or not to be'
      >>> normalised("Pay 17.50 by May 3", keep_digits=False)
      'pay 0 0 by may 0'
    """
    checks.text("text", text)
    lower = unicodedata.normalize("NFC", text).lower()
    composed = unicodedata.normalize("NFC", lower)
    bare = "".join(map(_bare, composed))
    if not keep_digits:
        bare = DIGITS.sub("0", bare)
    return " ".join(bare.split())


@functools.lru_cache(maxsize=4096)
def _bare(character: str) -> str:
    """A blank for punctuation and symbols, of any script."""
    kind = unicodedata.category(character)
    return " " if kind[0] in "PS" else character


def shingles(
    text: str, n_words: int = 5, *, keep_digits: bool = True
) -> frozenset[str]:
    """All runs of `n_words` words of a normalised text.

    Args:
      text: any.
      n_words: words of a run, at least 1.
      keep_digits: as for `normalised`.

    Returns:
      The runs; a text of fewer words is one run, all of it, so that short texts are
      compared as wholes.

    Raises:
      TypeError, ValueError: no text, or no whole number of words.

    References:
      Broder 1997, On the resemblance and containment of documents.

    Example:
      >>> sorted(shingles("One, two, three, four", n_words=3))
      ['one two three', 'two three four']
      >>> sorted(shingles("One, two"))
      ['one two']
    """
    checks.whole("n_words", n_words, least=1)
    words = normalised(text, keep_digits=keep_digits).split(" ")
    last = max(len(words) - n_words, 0)
    return frozenset(" ".join(words[i : i + n_words]) for i in range(last + 1))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of two sets' union that both have, |A & B| / |A | B|.

    Args:
      one: not empty, or `other` is not.
      other: likewise.

    Returns:
      0 to 1.

    Raises:
      ValueError: both are empty.

    Example:
      >>> jaccard(frozenset("abc"), frozenset("bcd"))
      0.5
    """
    union = len(one | other)
    if not union:
        raise ValueError("expected a set that is not empty, got two empty ones")
    return len(one & other) / union
