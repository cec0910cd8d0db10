"""Sentences of four domains rated for sentiment by 20 people each (Hutto and Gilbert, 2014).

The domains (tweets, product reviews, movie reviews, newspaper editorials) give a shift
of features between clients, reviews and editorials give natural clients, and a
Dirichlet partition over the label gives a shift of labels. Ships with the package under
the MIT licence of its authors (`files/vader_icwsm2014/`).

References:
  Hutto, C.J. and Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for
  Sentiment Analysis of Social Media Text. ICWSM-14.
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

# domain -> file, in the order of the rows of the table
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
    """One rated sentence as read, before anything is dropped."""

    domain: str
    # "<domain>/<number of the tweet, review, sentence or editorial>", unique over all
    # domains
    group: str
    rating: float  # mean of the raters, in [-4, 4]
    text: str


def load_sentiment() -> Table:
    """The task: is the mean rating of a sentence above zero?

    Three steps, each counted in `provenance["dropped"]`:

    1. `zero_rating`: a rating of exactly 0 has no sign.
    2. `conflicting_duplicate`: texts that occur more than once with both labels; all their rows go.
    3. `repeated_duplicate`: of texts that occur more than once with one label the first row stays.

    Two texts are the same if they agree after strip, case folding and collapsing of
    white space, across all domains: no sentence can stand on both sides of a split.

    HTML entities (`&amp;`, also the doubly escaped `&amp;#38;` of a few rows) are
    decoded; nothing else of the text is changed.

    Returns:
      A table of columns `text` (object, str), `label` (int32: 1 if rating > 0, else 0),
      `rating` (float32, in [-4, 4]), `domain` (str: tweets, amazon, movies, editorials)
      and `group` (str such as "amazon/17": a review or an editorial; a tweet and a
      movie sentence are a group each).

    Raises:
      DataFileError: a shipped file is missing or corrupt.
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
    """All rows of one domain in file order, entities decoded, nothing dropped.

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
    """`text` without HTML entities.

    Repeated until nothing changes, because some rows are escaped twice.

    >>> decode_entities("easy to use &amp;#38; convenient")
    'easy to use & convenient'
    """
    decoded = html.unescape(text)
    while decoded != text:
        text, decoded = decoded, html.unescape(decoded)
    return decoded


def duplicate_key(text: str) -> str:
    """What two texts must share to count as the same.

    Strip, case fold, one blank for any white space.

    >>> duplicate_key("  Great   Movie! ")
    'great movie!'
    """
    return " ".join(text.casefold().split())


def _label(sentence: Sentence) -> int:
    return int(sentence.rating > 0.0)


def _without_duplicates(sentences: list[Sentence]) -> tuple[list[Sentence], int, int]:
    """The sentences left in their order, and how many rows went as conflicting and as repeated."""
    labels: dict[str, set[int]] = defaultdict(set)
    for sentence in sentences:
        labels[duplicate_key(sentence.text)].add(_label(sentence))
    agreed = [
        sentence
        for sentence in sentences
        if len(labels[duplicate_key(sentence.text)]) == 1
    ]
    first: dict[str, Sentence] = {}
    for sentence in agreed:
        first.setdefault(duplicate_key(sentence.text), sentence)
    kept = list(first.values())  # a dict keeps the order of insertion
    return kept, len(sentences) - len(agreed), len(agreed) - len(kept)
