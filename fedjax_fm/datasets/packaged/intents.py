"""Commands to a smart home in 65 languages, each with the intent behind it.

People wrote the templates; the sentences are drawn from them. So templates are held out,
not sentences: two sentences of a template differ in little.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.datasets.draws import Draws
from fedjax_fm.datasets.hashed import split_of
from fedjax_fm.datasets.packaged.sources import opened, provenance
from fedjax_fm.datasets.packaged.templates import Grammar, Node, Text, draw, parse
from fedjax_fm.datasets.table import DataFileError, Table, text_column

_FILE = re.compile(r"home_assistant_intents/data/([^/]+)\.json")
_TRIES = 4  # draws for each sentence that is wanted: some come out alike


class Sentence(NamedTuple):
    """A sentence that was drawn from a template.

    Attributes:
      text: the sentence.
      intent: its name, such as "HassTurnOn".
      language: such as "de-CH".
      template: text of the template.
    """

    text: str
    intent: str
    language: str
    template: str


def load_intents(
    languages: Sequence[str] | None = None,
    per_template: int = 3,
    seed: int = 0,
    values: Mapping[str, Sequence[str]] | None = None,
    cache: str | Path | None = None,
) -> Table:
    """Loads sentences with their intent, a client for each language.

    Names of devices, rooms and floors and free text are not in the package: such a slot
    is written as its name in braces ("turn on {name}"), the same in all languages. With
    `values` it is filled.

    Left out and counted, in this order: `conflicting_text`, all rows of a text that has
    two intents in its language; `repeated_text`, all but the first of a text in its
    language; `text_of_another_split`, a text that another language's template brought
    into another split.

    Args:
      languages: which; None for all.
      per_template: at most so many different sentences of a template.
      seed: of the draws.
      values: {slot: texts}, for slots that the package has no values for, such as
        "name", "area" and "floor"; the same in all languages.
      cache: see `sources.cache_folder`.

    Returns:
      A table of columns `text` (object, str), `label` (int32, the place of the intent in
      `provenance["intents"]`, which has those of all languages), `language` (str),
      `template` (str, a hash of the template's text) and `split` (str: train,
      validation, test; by template, equal templates of two languages together).

    Raises:
      ValueError: an unknown language, or `per_template` below 1.
      MissingArchive: the package is not there; the message says how it is fetched.
      DataFileError: it is not the known one, or not laid out as expected.

    Example:
      >>> table = load_intents(["de", "nl"])  # doctest: +SKIP
    """
    if per_template < 1:
        raise ValueError(f"expected per_template >= 1, got per_template={per_template}")
    archive, release = opened("intents", cache)
    files = {
        match[1]: name
        for name in archive.names()
        if (match := _FILE.fullmatch(name)) is not None
    }
    chosen = _chosen(languages, files)
    raw = archive.read_all(list(files.values()))
    content = {language: json.loads(raw[files[language]]) for language in files}
    every = {name for page in content.values() for name in page["intents"]}
    intents = sorted(every)
    found: list[Sentence] = []
    for language in chosen:
        page = content[language]
        found += sentences_of(page, language, per_template, seed, values or {})
    kept, dropped = _without_doubles(found)
    if not kept:
        raise DataFileError(f"{archive.path.name}: no template in {list(chosen)}")
    number = {name: label for label, name in enumerate(intents)}
    columns = {
        "text": text_column([row.text for row in kept]),
        "label": np.array([number[row.intent] for row in kept], dtype=np.int32),
        "language": np.array([row.language for row in kept]),
        "template": np.array([template_id(row.template) for row in kept]),
        "split": np.array([split_of(row.template) for row in kept]),
    }
    more = {"intents": intents, "templates": len(set(columns["template"].tolist()))}
    return Table(columns, provenance("intents", release, len(kept), dropped, **more))


def _chosen(languages: Sequence[str] | None, files: Collection[str]) -> Sequence[str]:
    known = sorted(files)
    if languages is None:
        return known
    if unknown := [name for name in languages if name not in files]:
        raise ValueError(f"unknown language {unknown[0]!r}, expected some of {known}")
    return list(dict.fromkeys(languages))


def sentences_of(
    page: Mapping[str, Any],
    language: str,
    per_template: int,
    seed: int,
    values: Mapping[str, Sequence[str]],
) -> Iterator[Sentence]:
    """Draws sentences from the templates of one language.

    The draws of a template depend on the seed, the language and the template's text
    alone, so they stay if others are added.

    Args:
      page: a file of the package, read.
      language: its name.
      per_template: at most so many different sentences of a template.
      seed: of the draws.
      values: for slots that the page has no values for.

    Yields:
      Sentences, intent by intent.

    Raises:
      DataFileError: a template that cannot be read.
    """
    grammar = grammar_of(page, values)
    for intent, entry in page["intents"].items():
        blocks = entry["data"]
        templates = [text for block in blocks for text in block["sentences"]]
        for template in dict.fromkeys(templates):
            node, draws = parse(template), Draws(f"{seed}/{language}/{template}")
            texts: dict[str, None] = {}
            for _ in range(_TRIES * per_template):
                texts[draw(node, grammar, draws)] = None
                if len(texts) == per_template:
                    break
            for text in texts:
                yield Sentence(
                    text=text, intent=intent, language=language, template=template
                )


def grammar_of(
    page: Mapping[str, Any], values: Mapping[str, Sequence[str]] | None = None
) -> Grammar:
    """Rules and lists of one language.

    Numbers of a range are written in digits, and halves are left out.

    Args:
      page: a file of the package, read.
      values: {slot: texts} of slots that the page has no values for.

    Returns:
      The grammar.

    Raises:
      DataFileError: a rule or a value that cannot be read.

    Example:
      >>> page = {"lists": {"hours": {"range": {"from": 1, "to": 3}}}}
      >>> [node.text for node in grammar_of(page).lists["hours"]]
      ['1', '2', '3']
    """
    rules = page.get("expansion_rules", {})
    lists = {name: _values(entry) for name, entry in page.get("lists", {}).items()}
    given = {
        name: [Text(text) for text in texts]
        for name, texts in (values or {}).items()
        if not lists.get(name)
    }
    return Grammar({name: parse(text) for name, text in rules.items()}, lists | given)


def _values(entry: Mapping[str, Any]) -> list[Node]:
    """Templates of a list's values; none of one that takes any text."""
    if "range" in entry:
        span = entry["range"]
        numbers = range(span["from"], span["to"] + 1, span.get("step", 1))
        return [Text(str(number)) for number in numbers]
    texts = [x["in"] if isinstance(x, dict) else x for x in entry.get("values", ())]
    return [parse(text) for text in texts]


def template_id(template: str) -> str:
    """A short name of a template, from its text.

    Args:
      template: its text.

    Returns:
      16 hexadecimal digits.

    Example:
      >>> template_id("turn on {name}")
      '627de37e40673a36'
    """
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def _without_doubles(
    found: Sequence[Sentence],
) -> tuple[list[Sentence], dict[str, int]]:
    """Sentences of which no text has two intents in a language or is in two splits."""
    intents: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in found:
        intents[row.language, row.text].add(row.intent)
    dropped: Counter[str] = Counter()
    first: dict[tuple[str, str], Sentence] = {}
    splits: dict[str, str] = {}
    for row in found:
        key = (row.language, row.text)
        split = split_of(row.template)
        if len(intents[key]) > 1:
            dropped["conflicting_text"] += 1
        elif key in first:
            dropped["repeated_text"] += 1
        elif splits.setdefault(row.text, split) != split:
            dropped["text_of_another_split"] += 1
        else:
            first[key] = row
    return list(first.values()), dict(dropped)


def family(language: str) -> str:
    """What variants of a language have in common.

    Args:
      language: such as "de-CH".

    Returns:
      The part before the hyphen.

    Example:
      >>> family("zh-HK")
      'zh'
    """
    return language.partition("-")[0]


def hold_out_languages(table: Table, languages: Sequence[str]) -> dict[str, np.ndarray]:
    """Splits by language: training rows of some, test rows of others.

    All variants of a language are on one side ("de" holds out "de-CH", too), a text that
    also stands in a training language is left out of the test, and so is every template
    of the test that is in training.

    Args:
      table: of `load_intents`.
      languages: to hold out.

    Returns:
      {"train": rows of the other languages, "test": rows of these}, int64, ascending;
      all splits of the templates are in both.

    Raises:
      ValueError: a language that the table does not have, or none left to train on.

    Example:
      >>> columns = {"language": np.array(["en", "de", "de-CH"]),
      ...            "text": np.array(["hi", "hi", "hoi"], dtype=object),
      ...            "template": np.array(["a", "a", "b"])}
      >>> rows = hold_out_languages(Table(columns, {}), ["de"])
      >>> rows["train"].tolist(), rows["test"].tolist()
      ([0], [2])
    """
    there = table["language"].tolist()
    if unknown := [name for name in languages if name not in there]:
        known = sorted(set(there))
        raise ValueError(f"unknown language {unknown[0]!r}, expected some of {known}")
    held_out = {family(name) for name in languages}
    is_test = np.array([family(name) in held_out for name in there])
    train = np.flatnonzero(~is_test)
    if not train.size:
        raise ValueError(f"no language is left to train on, got languages={languages}")
    texts = {table["text"][row] for row in train}
    templates = {str(table["template"][row]) for row in train}
    test = [
        row
        for row in np.flatnonzero(is_test)
        if table["text"][row] not in texts
        and str(table["template"][row]) not in templates
    ]
    return {"train": train, "test": np.array(test, dtype=np.int64)}
