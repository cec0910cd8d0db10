"""Pairs from a small WordNet that is worked out by hand, and the counts of the real one."""

import collections
import itertools
import re

import naive_bayes
import numpy as np
import pytest
from small_archives import needs, register

from fedjax_fm.datasets import load_word_senses, split_of
from fedjax_fm.datasets.packaged import open_archive
from fedjax_fm.datasets.packaged.word_senses import (
    CLASSES,
    is_form_of,
    read_exceptions,
    read_synsets,
)
from fedjax_fm.datasets.table import DataFileError

LICENCE = "  1 This software and database is being provided to you\n"
NOUNS = LICENCE + "\n".join(
    (
        '00000001 17 n 02 bank 0 riverbank 0 001 @ 00000009 n 0000 | sloping land; "they sat on the bank"; "the banks were muddy"; "bank to bank"  ',
        '00000002 14 n 01 bank 2 000 | an institution; "the bank was closed"; "a bank of Bank Street"  ',
        '00000003 18 n 01 mouse 0 000 | a rodent; "Mice ran"; "a mouse hid"  ',
        '00000004 06 n 01 mouse 1 000 | a device; "click the mouse"; "the banks and the mouse"  ',
        '00000005 06 n 02 computer_mouse 0 mouse 2 000 | in two words; "a mouse hid"  ',
        '00000006 15 n 01 lonely 0 000 | has no pair of another sense; "a lonely one"; "a lonely two"  ',
    )
)
VERBS = LICENCE + "\n".join(
    (
        '00000001 38 v 01 bank 0 000 02 + 02 00 + 08 00 | tip; "the plane banked"; "banking steeply"  ',
        '00000002 40 v 01 bank 1 000 01 + 02 00 | do business; "Where do you bank?"  ',
    )
)
ADJECTIVES = LICENCE + '00000001 00 s 01 big(p) 0 000 | large; "bigger is better"  '
FILES = {
    "data.noun": NOUNS,
    "data.verb": VERBS,
    "data.adj": ADJECTIVES,
    "data.adv": LICENCE,
    "noun.exc": "mice mouse\n",
    "verb.exc": "",
    "adj.exc": "bigger big\n",
    "adv.exc": "",
}
MEMBERS = {f"usr/share/wordnet/{name}": text.encode() for name, text in FILES.items()}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "word_senses", MEMBERS)
    return load_word_senses()


def pairs(table, word, part, label):
    """Pairs of texts, each without an order."""
    chosen = [
        row
        for row in range(len(table))
        if (table["word"][row], table["part"][row], table["label"][row]) == (word, part, label)
    ]  # fmt: skip
    return {frozenset((table["text"][row], table["text_pair"][row])) for row in chosen}


def both(*texts):
    return {frozenset(pair) for pair in itertools.combinations(texts, 2)}


def test_pairs_of_a_small_wordnet(toy):
    # "bank to bank" and "a bank of Bank Street" have the word twice.
    assert pairs(toy, "bank", "noun", 1) == both(
        "they sat on the bank", "the banks were muddy"
    )
    other = pairs(toy, "bank", "noun", 0)
    assert len(other) == 1
    assert other <= {
        frozenset((text, "the bank was closed"))
        for text in ("they sat on the bank", "the banks were muddy")
    }
    assert pairs(toy, "bank", "verb", 1) == both("the plane banked", "banking steeply")
    assert len(pairs(toy, "bank", "verb", 0)) == 1
    # "a mouse hid" shows two senses and is in no pair; what is left of the rodent is one
    # example. The sentence with the banks stands in a synset of "mouse" alone.
    device = ("click the mouse", "the banks and the mouse")
    assert pairs(toy, "mouse", "noun", 1) == both(*device)
    other = pairs(toy, "mouse", "noun", 0)
    assert len(other) == 1
    assert other <= {frozenset((text, "Mice ran")) for text in device}
    assert set(toy["word"].tolist()) == {"bank", "mouse"}
    assert len(toy) == toy.provenance["rows"] == 6
    assert toy.provenance["dropped"] == {
        "example_without_one_place_of_a_word": 2,
        "example_of_another_word": 0,
    }


def test_spans_are_the_word_in_any_form(toy):
    for row in range(len(toy)):
        for end in ("", "_pair"):
            text = toy[f"text{end}"][row]
            form = text[toy[f"start{end}"][row] : toy[f"end{end}"][row]]
            forms = {
                "bank": ("bank", "banks", "banked", "banking"),
                "mouse": ("mouse", "Mice"),
            }
            assert form in forms[toy["word"][row]]


def test_a_words_rows_share_a_class_and_a_split(toy):
    by_word = collections.defaultdict(set)
    for word, part, domain in zip(toy["word"], toy["part"], toy["domain"], strict=True):
        by_word[word, part].add(domain)
    assert by_word == {
        ("bank", "noun"): {"noun.object"},
        ("bank", "verb"): {"verb.motion"},
        ("mouse", "noun"): {"noun.artifact"},
    }
    expected = [split_of(word) for word in toy["word"].tolist()]
    assert toy["split"].tolist() == expected


def test_the_order_of_the_texts_says_nothing_and_every_load_is_the_same(toy):
    again = load_word_senses()
    for name in toy.columns:
        assert toy[name].tolist() == again[name].tolist()


def test_a_sentence_of_two_words_stays_with_one(monkeypatch, tmp_path):
    lines = []
    for number, word in enumerate(("big", "large") * 2, start=1):
        barn = f"a big (or large) barn {(number + 1) // 2}"  # of one sense of each word
        examples = f'"{word} house {number}"; "{word} hats {number}"; "{barn}"'
        lines.append(f"{number:08} 00 a 01 {word} 0 000 | a sense; {examples}")
    members = MEMBERS | {"usr/share/wordnet/data.adj": "\n".join(lines).encode()}
    register(monkeypatch, tmp_path, "word_senses", members)
    table = load_word_senses()
    owner = collections.defaultdict(set)
    for column in ("text", "text_pair"):
        for sentence, word in zip(table[column], table["word"], strict=True):
            owner[sentence].add(word)
    assert {"big", "large"} <= set(table["word"].tolist())
    assert all(len(words) == 1 for words in owner.values())


@pytest.mark.parametrize(
    ("form", "lemma", "part", "expected"),
    [
        ("Churches", "church", "noun", True),
        ("glasses", "glass", "noun", True),
        ("firemen", "fireman", "noun", True),
        ("mice", "mouse", "noun", True),
        ("mice", "mouse", "verb", False),
        ("moused", "mouse", "verb", True),
        ("making", "make", "verb", True),
        ("widest", "wide", "adj", True),
        ("widely", "wide", "adj", False),
        ("quickly", "quickly", "adv", True),
        ("bus", "bu", "adv", False),
    ],
)
def test_forms(form, lemma, part, expected):
    exceptions = read_exceptions("mice mouse\n") if part == "noun" else {}
    assert is_form_of(form, lemma, part, exceptions) == expected


def test_a_synset_is_read_as_its_manual_says():
    (synset,) = read_synsets(ADJECTIVES, "adj")
    assert synset.words == ("big",)
    assert synset.key == "adj/00000001"
    assert synset.examples == ("bigger is better",)
    assert CLASSES[synset.lexicographer] == "adj.all"
    assert len(CLASSES) == 45
    with pytest.raises(
        DataFileError, match=r"data\.noun: no synset: '00000001 17 n zz"
    ):
        read_synsets("00000001 17 n zz bank 0 000 | a gloss", "noun")


def test_a_wordnet_without_pairs_is_refused(monkeypatch, tmp_path):
    members = {name: b"" for name in MEMBERS}
    register(monkeypatch, tmp_path, "word_senses", members)
    with pytest.raises(DataFileError, match="no word has pairs of both kinds"):
        load_word_senses()


def test_the_real_one():
    needs("word_senses")
    table = load_word_senses()
    assert len(table) == 8848
    assert table["label"].mean() == 0.5
    by_word = collections.defaultdict(list)
    sides = collections.defaultdict(set)
    for row in range(len(table)):
        by_word[table["word"][row], table["part"][row]].append(table["label"][row])
        for column in ("text", "text_pair"):
            sides[table[column][row]].add(str(table["split"][row]))
    for labels in by_word.values():
        assert np.mean(labels) == 0.5
        assert len(labels) <= 6
    words = {
        split: {
            str(table["word"][row]) for row in np.flatnonzero(table["split"] == split)
        }
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, words.values())) == len(set(table["word"].tolist())) == 2324
    assert all(len(splits) == 1 for splits in sides.values())
    assert set(table["domain"].tolist()) <= set(CLASSES)
    # Counted from the raw text in another way: synsets, and their classes.
    archive = open_archive("word_senses")
    files = [
        f"usr/share/wordnet/data.{part}" for part in ("noun", "verb", "adj", "adv")
    ]
    raw = archive.read_all(files)
    lines = [re.findall(rb"^\d{8} (\d\d) ", text, re.M) for text in raw.values()]
    assert sum(map(len, lines)) == 117_659
    assert len({number for page in lines for number in page}) == 45


def test_single_words_of_the_real_one_give_little_away():
    needs("word_senses")
    table = load_word_senses()
    labels, split = table["label"], table["split"]
    both = [
        " ".join(pair) for pair in zip(table["text"], table["text_pair"], strict=True)
    ]
    for texts in (table["text"], table["text_pair"], both):
        assert abs(naive_bayes.accuracy(texts, labels, split) - 0.5) < 0.04
