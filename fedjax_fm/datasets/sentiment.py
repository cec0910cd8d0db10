"""Sentences of four domains, each rated for sentiment by 20 people.

The text ships with the package under the MIT licence of its authors, see
`files/vader_icwsm2014/`.

References:
  Hutto, Gilbert (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis
  of Social Media Text. ICWSM-14.
"""

from __future__ import annotations

import html
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from fedjax_fm.datasets.table import (
    SourceFile,
    Table,
    combined_sha256,
    read_rows,
    text_column,
)

_FOLDER = "vader_icwsm2014"

# {domain: file}, in the order of the rows of the table
SOURCES: dict[str, SourceFile] = {
    "tweets": SourceFile(
        _FOLDER,
        "tweets.tsv",
        "1a553d326344f17de80a4782e0b7f5843cdacbf7719a4a321721c773015b7e64",
    ),
    "amazon": SourceFile(
        _FOLDER,
        "amazonReviewSnippets.tsv",
        "e4559b1299fd793ab64794ba706421ce088b6c580b782529388997f7aedcc545",
    ),
    "movies": SourceFile(
        _FOLDER,
        "movieReviewSnippets.tsv",
        "1f445408f0ece8973e6142dcc8bd08eea2faaf149b907de11bddda64fd62f5b0",
    ),
    "editorials": SourceFile(
        _FOLDER,
        "nytEditorialSnippets.tsv",
        "a27061dceb1c2edf53ac4894ee63071f5d235d1d7bac9be0098d1b0cc58f8f0a",
    ),
}

CITATION = (
    "Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model "
    "for Sentiment Analysis of Social Media Text. ICWSM-14."
)


class Sentence(NamedTuple):
    """One rated sentence as read, before any is dropped.

    Attributes:
      domain: a key of `SOURCES`.
      group: "<domain>/<number>" of the tweet, review, sentence or editorial.
      rating: the mean of the raters, in [-4, 4].
      text: without HTML entities.
    """

    domain: str
    group: str
    rating: float
    text: str


def load_sentiment() -> Table:
    """Loads 23,176 sentences with their sentiment; label 1 is a rating above zero.

    The domains (tweets, product reviews, movie reviews, newspaper editorials) differ in
    their features. The groups, above all reviews and editorials, are natural clients. A
    Dirichlet partition over the label makes clients that differ in their labels.

    Rows are dropped in three steps, counted in `provenance["dropped"]`:

    1. `zero_rating`: a rating of exactly 0 has no sign.
    2. `conflicting_duplicate`: all rows of a text that occurs with both labels.
    3. `repeated_duplicate`: all rows but the first of a text that occurs repeatedly.

    Texts are compared over all domains, without case and with white space collapsed, so
    that no text can be on both sides of a split. HTML entities are decoded (`&amp;`,
    and `&amp;#38;` of a few rows, which is escaped twice). Nothing else is changed.

    Returns:
      A table of columns `text` (object, str), `label` (int32: 1 if rating > 0, else 0),
      `rating` (float32, in [-4, 4]), `domain` (str: tweets, amazon, movies, editorials)
      and `group` (str such as "amazon/17": a review or an editorial; each tweet and
      each movie sentence is a group of its own).

    Raises:
      DataFileError: a shipped file is missing or corrupt.

    References:
      Hutto, Gilbert (2014), ICWSM-14.

    Example:
      >>> table = load_sentiment()
      >>> len(table), round(float(table["label"].mean()), 3)
      (23176, 0.535)
      >>> print(table["domain"][3], table["text"][3], table["label"][3])
      tweets LMAO, AMAZING! 1
    """
    sentences = [sentence for domain in SOURCES for sentence in read_sentences(domain)]
    signed = [sentence for sentence in sentences if sentence.rating != 0.0]
    kept, conflicting, repeated = _without_duplicates(signed)
    provenance = {
        "name": "vader_icwsm2014",
        "kind": "real",
        "citation": CITATION,
        "licence": "MIT",
        "sha256": combined_sha256(SOURCES.values()),
        "rows": len(kept),
        "dropped": {
            "zero_rating": len(sentences) - len(signed),
            "conflicting_duplicate": conflicting,
            "repeated_duplicate": repeated,
        },
    }
    columns = {
        "text": text_column([sentence.text for sentence in kept]),
        "label": np.array([_label(sentence) for sentence in kept], dtype=np.int32),
        "rating": np.array([sentence.rating for sentence in kept], dtype=np.float32),
        "domain": np.array([sentence.domain for sentence in kept]),
        "group": np.array([sentence.group for sentence in kept]),
    }
    return Table(columns, provenance)


def read_sentences(domain: str) -> list[Sentence]:
    """Reads all rows of one domain, in the order of the file; none is dropped.

    Args:
      domain: a key of `SOURCES`.

    Returns:
      The sentences, their HTML entities decoded.

    Raises:
      ValueError: a domain that is not one of the four.
      DataFileError: the file is missing or corrupt.
    """
    if domain not in SOURCES:
        raise ValueError(f"expected domain in {list(SOURCES)}, got domain={domain!r}")
    return [
        Sentence(
            domain=domain,
            group=f"{domain}/{identifier.split('_')[0]}",
            rating=float(rating),
            text=decode_entities(text),
        )
        for identifier, rating, text in read_rows(SOURCES[domain])
    ]


def decode_entities(text: str) -> str:
    """Replaces HTML entities, repeatedly, because some rows are escaped twice.

    Args:
      text: with entities.

    Returns:
      The text without any.

    Example:
      >>> decode_entities("easy to use &amp;#38; convenient")
      'easy to use & convenient'
    """
    decoded = html.unescape(text)
    while decoded != text:
        text, decoded = decoded, html.unescape(decoded)
    return decoded


def duplicate_key(text: str) -> str:
    """The form in which texts are compared: case folded, white space collapsed.

    Args:
      text: any.

    Returns:
      The key; texts with equal keys count as the same.

    Example:
      >>> duplicate_key("  Great   Movie! ")
      'great movie!'
    """
    return " ".join(text.casefold().split())


def _label(sentence: Sentence) -> int:
    """1 for a rating above zero, else 0."""
    return int(sentence.rating > 0.0)


def _without_duplicates(sentences: list[Sentence]) -> tuple[list[Sentence], int, int]:
    """(sentences that stay, rows with conflicting labels, repeated rows)."""
    keys = [duplicate_key(sentence.text) for sentence in sentences]
    labels: dict[str, set[int]] = defaultdict(set)
    for key, sentence in zip(keys, sentences, strict=True):
        labels[key].add(_label(sentence))
    first: dict[str, Sentence] = {}  # in the order of the sentences
    agreed = 0
    for key, sentence in zip(keys, sentences, strict=True):
        if len(labels[key]) == 1:
            agreed += 1
            first.setdefault(key, sentence)
    kept = list(first.values())
    return kept, len(sentences) - agreed, agreed - len(kept)
