"""Pairs of sentences with a word in the same sense or in another one, from WordNet.

The examples of a synset show its words in one sense. Whether two sentences use a word
in the same sense cannot be told from either alone, nor from the word.

References:
  Fellbaum (1998). WordNet: An Electronic Lexical Database. MIT Press.
  Pilehvar, Camacho-Collados (2019). WiC: the Word-in-Context Dataset for Evaluating
  Context-Sensitive Meaning Representations. arXiv 1808.09121. (The task; other rows.)
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_fm.datasets.hashed import choice, splits_of
from fedjax_fm.datasets.packaged.sources import opened, provenance
from fedjax_fm.datasets.table import DataFileError, Table, text_column

_FOLDER = "usr/share/wordnet"
_PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
MOST_PAIRS = 3  # of each kind, for a word

# The files of lexicographers, by number; lexnames(5WN).
CLASSES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal",
    "noun.artifact", "noun.attribute", "noun.body", "noun.cognition",
    "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon",
    "noun.plant", "noun.possession", "noun.process", "noun.quantity", "noun.relation",
    "noun.shape", "noun.state", "noun.substance", "noun.time", "verb.body",
    "verb.change", "verb.cognition", "verb.communication", "verb.competition",
    "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion",
    "verb.perception", "verb.possession", "verb.social", "verb.stative",
    "verb.weather", "adj.ppl",
)  # fmt: skip

# Endings that an inflected form may have in the place of its lemma's; morphy(7WN).
_ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"),
        ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""),
        ("ing", "e"), ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_QUOTED = re.compile(r'"([^"]+)"')
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand


class Synset(NamedTuple):
    """One meaning.

    Attributes:
      key: "<part of speech>/<offset in its file>".
      lexicographer: number of its class in `CLASSES`.
      words: its lemmas; "_" for a blank.
      examples: sentences and phrases that show one of the words.
    """

    key: str
    lexicographer: int
    words: tuple[str, ...]
    examples: tuple[str, ...]


class Example(NamedTuple):
    """A sentence that shows a word once.

    Attributes:
      text: the sentence.
      start: of the word in it, in characters.
      end: behind the word.
      sense: key of its synset.
      lexicographer: of its synset.
    """

    text: str
    start: int
    end: int
    sense: str
    lexicographer: int


def load_word_senses(cache: str | Path | None = None) -> Table:
    """Loads pairs of sentences, and whether a word has the same sense in both.

    For each word (a lemma of one part of speech) there are as many pairs of the same
    sense as of different senses, at most three of each, so neither the word nor its
    class says anything of the label. A sentence is taken if the word, in any inflected
    form, stands in it exactly once. No pair occurs twice. A sentence that shows two
    words is kept with the first of them in the alphabet, so no text is on both sides of
    a split by word.

    What remains without reading both: a sense with one example occurs in pairs of
    different senses alone. Train a control on one of the two sentences.

    Args:
      cache: see `sources.cache_folder`.

    Returns:
      A table of columns `text`, `text_pair` (object, str), `word` (str, the lemma),
      `part` (str: noun, verb, adjective, adverb), `label` (int32: 1 for the same
      sense), `start`, `end`, `start_pair`, `end_pair` (int32, characters of the word),
      `domain` (str, the most frequent lexicographer class of the word's examples, the
      same for all of its rows: a client) and `split` (str: train, validation, test; by
      word, whatever its part of speech).

    Raises:
      MissingArchive: the package is not there; the message says how it is fetched.
      DataFileError: it is not the known one, or not laid out as expected.

    References:
      Fellbaum (1998), WordNet. Pilehvar, Camacho-Collados (2019), arXiv 1808.09121.

    Example:
      >>> table = load_word_senses()  # doctest: +SKIP
    """
    archive, release = opened("word_senses", cache)
    files = [f"{_FOLDER}/data.{part}" for part in _PARTS]
    files += [f"{_FOLDER}/{part}.exc" for part in _PARTS]
    raw = archive.read_all(files)
    content = {Path(name).name: data.decode("utf-8") for name, data in raw.items()}
    examples: dict[tuple[str, str], list[Example]] = {}
    dropped: Counter[str] = Counter()
    for part in _PARTS:
        synsets = read_synsets(content[f"data.{part}"], part)
        exceptions = read_exceptions(content[f"{part}.exc"])
        found = _examples_by_word(synsets, part, exceptions, dropped)
        examples |= {(word, part): rows for word, rows in found.items()}
    examples = _of_one_word(examples, dropped)
    rows = [row for key in sorted(examples) for row in _pairs(*key, examples[key])]
    if not rows:
        raise DataFileError(f"{archive.path.name}: no word has pairs of both kinds")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    arrays = {
        name: text_column(values) if name in ("text", "text_pair") else _array(values)
        for name, values in columns.items()
    }
    arrays["split"] = splits_of(columns["word"])
    return Table(arrays, provenance("word_senses", release, len(rows), dict(dropped)))


def _array(values: list) -> np.ndarray:
    array = np.array(values)
    return array if array.dtype.kind == "U" else array.astype(np.int32)


def read_synsets(text: str, part: str) -> list[Synset]:
    """Reads a file `data.noun`, `data.verb`, `data.adj` or `data.adv`; see wndb(5WN).

    Args:
      text: of the file.
      part: "noun", "verb", "adj" or "adv", for the keys.

    Returns:
      The synsets in the order of the file.

    Raises:
      DataFileError: a line is not laid out as expected.

    Example:
      >>> line = '00002098 00 a 01 unable 0 000 | not having power; "unable to go"'
      >>> read_synsets(line, "adj")[0].examples
      ('unable to go',)
    """
    synsets = []
    for line in text.splitlines():
        if line.startswith("  "):
            continue  # the licence
        before, _, gloss = line.partition(" | ")
        fields = before.split(" ")
        try:
            count = int(fields[3], 16)
            words = [fields[4 + 2 * i] for i in range(count)]
            number = int(fields[1])
        except (IndexError, ValueError) as error:
            raise DataFileError(f"data.{part}: no synset: {line[:60]!r}") from error
        synsets.append(
            Synset(
                key=f"{part}/{fields[0]}",
                lexicographer=number,
                words=tuple(_MARKER.sub("", word) for word in words),
                examples=tuple(_QUOTED.findall(gloss)),
            )
        )
    return synsets


def read_exceptions(text: str) -> dict[str, set[str]]:
    r"""Reads a file of irregular forms, such as `noun.exc`.

    Args:
      text: lines of a form and its lemmas.

    Returns:
      {form: lemmas}.

    Example:
      >>> read_exceptions("mice mouse\n")
      {'mice': {'mouse'}}
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return {form: set(lemmas) for form, *lemmas in lines}


def is_form_of(
    form: str, lemma: str, part: str, exceptions: Mapping[str, set[str]]
) -> bool:
    """Whether a word of a sentence may be a form of a lemma; morphy(7WN).

    Args:
      form: as it stands in the sentence, in any case.
      lemma: as WordNet writes it.
      part: "noun", "verb", "adj" or "adv".
      exceptions: see `read_exceptions`.

    Returns:
      True where it is the lemma itself, an irregular form, or the lemma with one of the
      regular endings of its part of speech.

    Example:
      >>> [is_form_of(form, "carry", "verb", {}) for form in ("carries", "carrier")]
      [True, False]
    """
    form, lemma = form.lower(), lemma.lower()
    if form == lemma or lemma in exceptions.get(form, ()):
        return True
    return any(
        form.endswith(ending) and form.removesuffix(ending) + own == lemma
        for ending, own in _ENDINGS[part]
    )


def _examples_by_word(
    synsets: Iterable[Synset],
    part: str,
    exceptions: Mapping[str, set[str]],
    dropped: Counter[str],
) -> dict[str, list[Example]]:
    """{lemma: its examples}; counts what is left out, by reason."""
    found: dict[str, list[Example]] = defaultdict(list)
    for synset in synsets:
        words = {word.lower() for word in synset.words if "_" not in word}
        for text in dict.fromkeys(synset.examples):
            tokens = list(_WORD.finditer(text))
            shown = 0
            for word in sorted(words):
                at = [x for x in tokens if is_form_of(x[0], word, part, exceptions)]
                if len(at) == 1:
                    example = Example(
                        text=text,
                        start=at[0].start(),
                        end=at[0].end(),
                        sense=synset.key,
                        lexicographer=synset.lexicographer,
                    )
                    found[word].append(example)
                    shown += 1
            dropped["example_without_one_place_of_a_word"] += shown == 0
    return found


def _of_one_word(
    examples: Mapping[tuple[str, str], list[Example]], dropped: Counter[str]
) -> dict[tuple[str, str], list[Example]]:
    """Examples of which no text shows two lemmas; the first lemma keeps it."""
    owners: dict[str, str] = {}
    kept = {}
    for word, part in sorted(examples):
        found = examples[word, part]
        own = [x for x in found if owners.setdefault(x.text, word) == word]
        dropped["example_of_another_word"] += len(found) - len(own)
        kept[word, part] = own
    return kept


def _pairs(word: str, part: str, examples: list[Example]) -> list[dict]:
    """Rows of one word: as many of the same sense as of different senses."""
    texts = Counter(example.text for example in examples)
    # The same sentence in two senses says nothing.
    clear = [example for example in examples if texts[example.text] == 1]
    pairs = list(itertools.combinations(clear, 2))
    same = [(a, b) for a, b in pairs if a.sense == b.sense]
    other = [(a, b) for a, b in pairs if a.sense != b.sense]
    count = min(len(same), len(other), MOST_PAIRS)
    classes = Counter(example.lexicographer for example in clear)
    domain = min(classes, key=lambda number: (-classes[number], number), default=0)
    rows = []
    for label, kind in ((1, same), (0, other)):
        for pair in choice(f"{word}/{part}/{label}", kind, count):
            texts_of_pair = sorted(example.text for example in pair)
            order = f"{word}/{part}/{'/'.join(texts_of_pair)}"
            first, second = choice(order, pair, 2)
            rows.append(
                {
                    "text": first.text,
                    "text_pair": second.text,
                    "word": word,
                    "part": _PARTS[part],
                    "label": label,
                    "start": first.start,
                    "end": first.end,
                    "start_pair": second.start,
                    "end_pair": second.end,
                    "domain": CLASSES[domain],
                }
            )
    return rows
