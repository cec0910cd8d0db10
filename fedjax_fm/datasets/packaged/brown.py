"""The Brown corpus: sentences with a tag for each token, in 15 genres.

References:
  Francis, Kucera (1979). Brown Corpus Manual. Brown University.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedjax_fm.datasets.hashed import splits_of
from fedjax_fm.datasets.packaged.columns import object_column
from fedjax_fm.datasets.packaged.sources import opened, provenance
from fedjax_fm.datasets.table import DataFileError, Table

# By the letter in a file's name; the manual's categories A to R.
GENRES = {
    "a": "news", "b": "editorial", "c": "reviews", "d": "religion", "e": "hobbies",
    "f": "lore", "g": "belles_lettres", "h": "government", "j": "learned",
    "k": "fiction", "l": "mystery", "m": "science_fiction", "n": "adventure",
    "p": "romance", "r": "humor",
}  # fmt: skip

_FILE = re.compile(r"package/(c([a-hj-npr])\d\d)")
_PLACES = ("-tl", "-hl", "-nc")  # in a title, in a headline, cited


def load_brown(cache: str | Path | None = None) -> Table:
    """Loads tagged sentences of American English of 1961, a client for each genre.

    Sentences of one text are alike, so whole texts go to a split.

    Args:
      cache: see `sources.cache_folder`.

    Returns:
      A table of columns `tokens` (object, a tuple of str), `tags` (object, as many base
      tags, see `base_tag`), `genre` (str, a value of `GENRES`), `document` (str such as
      "ca01") and `split` (str: train, validation, test; by document), in the order of
      the corpus. `provenance["tags"]` lists the tags, ascending.

    Raises:
      MissingArchive: the package is not there; the message says how it is fetched.
      DataFileError: it is not the known one, or not laid out as expected.

    References:
      Francis, Kucera (1979), Brown Corpus Manual.

    Example:
      >>> table = load_brown()  # doctest: +SKIP
    """
    archive, release = opened("brown", cache)
    files = {
        found[0]: (found[1], GENRES[found[2]])
        for name in archive.names()
        if (found := _FILE.fullmatch(name))
    }
    if not files:
        raise DataFileError(f"{archive.path.name}: no text such as package/ca01 in it")
    content = archive.read_all(sorted(files))
    tokens, tags, genres, documents = [], [], [], []
    for name, raw in content.items():
        document, genre = files[name]
        for words, marks in read_sentences(raw.decode("utf-8"), document):
            tokens.append(words)
            tags.append(marks)
            genres.append(genre)
            documents.append(document)
    known = sorted({tag for marks in tags for tag in marks})
    columns = {
        "tokens": object_column(tokens),
        "tags": object_column(tags),
        "genre": np.array(genres),
        "document": np.array(documents),
        "split": splits_of(documents),
    }
    return Table(columns, provenance("brown", release, len(tokens), {}, tags=known))


def read_sentences(
    text: str, document: str
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Reads a text of the corpus, a sentence a line, tokens as "word/tag".

    Args:
      text: of a file.
      document: its name, for an error.

    Returns:
      (tokens, base tags) of each sentence.

    Raises:
      DataFileError: a token without a tag.

    Example:
      >>> read_sentences("It/pps isn't/bez* either/or/cc ./.", "toy")
      [(('It', "isn't", 'either/or', '.'), ('pps', 'bez', 'cc', '.'))]
    """
    sentences = []
    for line in text.splitlines():
        pairs = [token.rpartition("/") for token in line.split()]
        if not pairs:
            continue
        if wrong := [tag for word, _, tag in pairs if not word or not tag]:
            raise DataFileError(f"{document}: expected word/tag, got {wrong[0]!r}")
        words = tuple(word for word, _, _ in pairs)
        sentences.append((words, tuple(base_tag(tag) for _, _, tag in pairs)))
    return sentences


def base_tag(tag: str) -> str:
    """The part of speech alone: no marks of place, language, contraction or negation.

    Of a contraction such as "ppss+ber" ("they're") the first part counts.

    Args:
      tag: of the corpus.

    Returns:
      The base tag.

    Example:
      >>> [base_tag(tag) for tag in ("nn-tl", "fw-jj-tl", "md*", "ppss+ber", "*", "--")]
      ['nn', 'jj', 'md', 'ppss', '*', '--']
    """
    tag = tag.removeprefix("fw-").partition("+")[0]
    while tag.endswith(_PLACES):
        tag = tag[:-3]
    return tag.removesuffix("*") or tag
