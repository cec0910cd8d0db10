"""Templates beside hassil, sentences of a small package, and splits that share nothing."""

import collections
import itertools
import json

import numpy as np
import pytest
from small_archives import needs, register

from fedjax_fm.datasets import hold_out_languages, load_intents
from fedjax_fm.datasets.draws import Draws
from fedjax_fm.datasets.packaged import open_archive
from fedjax_fm.datasets.packaged.intents import grammar_of, sentences_of, template_id
from fedjax_fm.datasets.packaged.templates import Grammar, draw, parse, sentences
from fedjax_fm.datasets.table import DataFileError, Table

PAGE = {
    "language": "en",
    "expansion_rules": {
        "the": "(the|my|our)",
        "turn": "(turn|switch) [<the>]",
        "bare": "one|two",
    },
    "lists": {
        "percent": {"range": {"from": 10, "to": 30, "step": 10}},
        "colour": {
            "values": [{"in": "red", "out": 1}, {"in": "(light|dark) blue", "out": 2}]
        },
        "words": {"values": ["yes", "no"]},
        "anything": {"wildcard": True},
    },
}
EXPECTED = {
    "hello": {"hello"},
    "(a|b)": {"a", "b"},
    "a|b": {"a", "b"},
    "[x]": {"x", ""},
    "a [b|c] d": {"a b d", "a c d", "a d"},
    "light[s]": {"light", "lights"},
    "  much   [ ]  space ": {"much space"},
    "(a;b)": {"a b", "b a"},
    "x(a;[b])y": {"xa by", "xb ay", "xay"},
    "[[of ](the|my)] end": {"of the end", "of my end", "the end", "my end", "end"},
    "<turn> on": {
        " ".join(filter(None, (verb, the, "on")))
        for verb, the in itertools.product(("turn", "switch"), ("", "the", "my", "our"))
    },
    "<bare> more": {"one more", "two more"},
    "to {percent:level}%": {"to 10%", "to 20%", "to 30%"},
    "{colour}": {"red", "light blue", "dark blue"},
    "{words} {name} in {anything}": {
        "yes {name} in {anything}",
        "no {name} in {anything}",
    },
    r"\(a\|b\)": {"(a|b)"},
}


@pytest.mark.parametrize("template", EXPECTED)
def test_all_sentences_of_a_template(template):
    grammar = grammar_of(PAGE)
    assert set(sentences(parse(template), grammar)) == EXPECTED[template]
    draws = Draws("seed")
    drawn = {draw(parse(template), grammar, draws) for _ in range(300)}
    assert drawn == EXPECTED[template]


@pytest.mark.parametrize(
    "template", [t for t in EXPECTED if "{" not in t and "\\" not in t]
)
def test_hassil_reads_a_template_alike(template):
    hassil = pytest.importorskip("hassil", reason="hassil is not installed")
    sample = pytest.importorskip("hassil.sample", reason="hassil is not installed")
    rules = {
        name: hassil.parse_sentence(text)
        for name, text in PAGE["expansion_rules"].items()
    }
    expression = hassil.parse_sentence(template).expression
    found = sample.sample_expression(expression, {}, rules)
    assert {" ".join(text.split()) for text in found} == EXPECTED[template]


def small(node, grammar, most=3000):
    """All sentences, if they are not too many."""
    found = list(itertools.islice(sentences(node, grammar), most + 1))
    return None if len(found) > most else set(found)


@pytest.mark.parametrize(
    "language", ["de", "en", "nl", "fr", "ru", "zh-CN", "th", "ar"]
)
def test_hassil_reads_the_real_templates_alike(language):
    needs("intents")
    hassil = pytest.importorskip("hassil", reason="hassil is not installed")
    sample = pytest.importorskip("hassil.sample", reason="hassil is not installed")
    page = json.loads(
        open_archive("intents").read(f"home_assistant_intents/data/{language}.json")
    )
    ours = Grammar(grammar_of(page).rules, {})
    rules = {
        name: hassil.parse_sentence(text)
        for name, text in page["expansion_rules"].items()
    }
    compared = 0
    for entry in page["intents"].values():
        for block in entry["data"]:
            for template in block["sentences"][:1]:
                if template.count("(") + template.count("[") + template.count("<") > 3:
                    continue
                if (mine := small(parse(template), ours)) is None:
                    continue
                expression = hassil.parse_sentence(template).expression
                theirs = sample.sample_expression(
                    expression, {}, rules, expand_lists=False
                )
                plain = {" ".join(text.split()) for text in theirs}
                assert mine == {without_slots(text) for text in plain}, template
                compared += 1
    assert compared >= 10


def without_slots(text):
    """hassil leaves the slot's own name in the braces."""
    parts = text.split("{")
    names = [part.partition("}") for part in parts[1:]]
    return parts[0] + "".join(
        f"{{{n.partition(':')[0]}}}{rest}" for n, _, rest in names
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("(a|b", r"expected '\)' at its end"),
        ("[a", r"expected '\]' at its end"),
        ("<a", "expected '>' at its end"),
        ("a)", r"'\)' at 1 opens nowhere"),
        ("a]b", r"'\]' at 1 opens nowhere"),
        ("(a|b;c)", "in one group"),
    ],
)
def test_templates_that_make_no_sense(template, message):
    with pytest.raises(DataFileError, match=message):
        parse(template)


def test_rules_that_are_missing_or_call_themselves():
    grammar = Grammar({"loop": parse("a <loop>")}, {})
    for use in (sentences(parse("<loop>"), grammar), [draw]):
        with pytest.raises(DataFileError, match="rule or list 'loop' calls itself"):
            list(use) if use != [draw] else draw(parse("<loop>"), grammar, Draws("a"))
    with pytest.raises(
        DataFileError, match=r"unknown rule <no>, expected one of \['loop'\]"
    ):
        draw(parse("<no>"), grammar, Draws("a"))


def package(languages):
    """A wheel's members: {language: {intent: templates}}."""
    members = {"home_assistant_intents/__init__.py": b"raise ImportError"}
    for language, intents in languages.items():
        data = {
            name: {"data": [{"sentences": [text]} for text in texts]}
            for name, texts in intents.items()
        }
        page = PAGE | {"language": language, "intents": data}
        name = f"home_assistant_intents/data/{language}.json"
        members[name] = json.dumps(page).encode()
    return members


MANY = [f"(say|tell) word{i} [now] to {{name}}" for i in range(60)]
LANGUAGES = {
    "en": {"Say": MANY, "Stop": ["stop [it]", "the end", "<turn> off"], "Go": ["the end", "go"]},
    "de": {"Say": MANY[:20], "Stop": ["halt [ein]"]},
    "de-CH": {"Say": ["säg öppis", "halt"], "Stop": ["halt [ein]"]},
}  # fmt: skip


@pytest.fixture
def toy(monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "intents", package(LANGUAGES))


@pytest.mark.usefixtures("toy")
def test_sentences_of_a_small_package():
    table = load_intents(per_template=2)
    assert table.provenance["intents"] == ["Go", "Say", "Stop"]
    names = np.array(table.provenance["intents"])[table["label"]]
    rows = set(
        zip(table["language"].tolist(), table["text"], names.tolist(), strict=True)
    )
    assert ("en", "go", "Go") in rows
    assert ("en", "stop", "Stop") in rows
    assert ("de", "halt ein", "Stop") in rows
    # In English "the end", in Swiss German "halt" have two intents.
    assert not any(text == "the end" for _, text, _ in rows)
    assert not any(text == "halt" for language, text, _ in rows if language == "de-CH")
    assert table.provenance["dropped"]["conflicting_text"] == 4
    per_template = collections.Counter(
        zip(table["language"].tolist(), table["template"].tolist(), strict=True)
    )
    assert max(per_template.values()) == 2
    assert per_template["en", template_id(MANY[0])] == 2


@pytest.mark.usefixtures("toy")
def test_splits_share_no_template_and_no_text():
    table = load_intents(per_template=4)
    for column in ("template", "text"):
        sides = collections.defaultdict(set)
        for value, split in zip(
            table[column].tolist(), table["split"].tolist(), strict=True
        ):
            sides[value].add(split)
        assert all(len(splits) == 1 for splits in sides.values())
    assert len(set(table["split"].tolist())) == 3


@pytest.mark.usefixtures("toy")
def test_a_text_that_other_templates_bring_into_another_split_is_left_out(
    monkeypatch, tmp_path
):
    # Two templates of one sentence, whose hashes are in different splits.
    templates = [f"same [[[{'[' * i}x{']' * i}]]] text" for i in range(40)]
    data = {f"l{i}": {"Say": [text]} for i, text in enumerate(templates)}
    register(monkeypatch, tmp_path, "intents", package(data))
    table = load_intents(per_template=2)
    assert set(table["text"].tolist()) <= {"same x text", "same text"}
    sides = collections.defaultdict(set)
    for text, split in zip(table["text"], table["split"].tolist(), strict=True):
        sides[text].add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert table.provenance["dropped"]["text_of_another_split"] > 0


@pytest.mark.usefixtures("toy")
def test_languages_are_chosen_and_slots_filled():
    table = load_intents(["de"], values={"name": ["Licht"], "colour": ["ignored"]})
    assert set(table["language"].tolist()) == {"de"}
    assert any(text.endswith("to Licht") for text in table["text"])
    assert not any("{" in text for text in table["text"])
    assert table.provenance["intents"] == ["Go", "Say", "Stop"]
    with pytest.raises(ValueError, match=r"unknown language 'xx', expected some of \['de', 'de-CH', 'en'\]"):  # fmt: skip
        load_intents(["xx"])
    with pytest.raises(
        ValueError, match="expected per_template >= 1, got per_template=0"
    ):
        load_intents(per_template=0)


@pytest.mark.usefixtures("toy")
def test_draws_depend_on_seed_language_and_template_alone():
    page = PAGE | {"intents": {"Say": {"data": [{"sentences": MANY}]}}}
    alone = PAGE | {"intents": {"Say": {"data": [{"sentences": [MANY[7]]}]}}}
    all_rows = list(sentences_of(page, "en", 2, 0, {}))
    assert list(sentences_of(alone, "en", 2, 0, {})) == [
        row for row in all_rows if row.template == MANY[7]
    ]
    assert list(sentences_of(page, "en", 2, 1, {})) != all_rows
    assert list(sentences_of(page, "nl", 2, 0, {})) != all_rows


@pytest.mark.usefixtures("toy")
def test_held_out_languages_share_no_text_no_template_and_no_variant():
    table = load_intents(per_template=4)
    rows = hold_out_languages(table, ["de"])
    side = {name: table.select(found) for name, found in rows.items()}
    assert set(side["train"]["language"].tolist()) == {"en"}
    assert set(side["test"]["language"].tolist()) == {"de", "de-CH"}
    for column in ("text", "template"):
        assert not set(side["train"][column].tolist()) & set(
            side["test"][column].tolist()
        )
    assert "halt ein" in side["test"]["text"].tolist()
    with pytest.raises(ValueError, match="unknown language 'fr'"):
        hold_out_languages(table, ["fr"])
    with pytest.raises(ValueError, match="no language is left to train on"):
        hold_out_languages(table, ["en", "de"])


@pytest.mark.parametrize(
    ("text", "template", "kept"),
    [("hi", "b", False), ("moin", "a", False), ("moin", "b", True)],
)
def test_a_text_or_a_template_of_the_training_is_not_in_the_test(text, template, kept):
    columns = {
        "language": np.array(["en", "de", "de"]),
        "text": np.array(["hi", text, "other"], dtype=object),
        "template": np.array(["a", template, "c"]),
    }
    rows = hold_out_languages(Table(columns, {}), ["de"])
    assert rows["test"].tolist() == ([1, 2] if kept else [2])


def test_a_package_without_templates(monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "intents", package({"en": {"Say": []}}))
    with pytest.raises(DataFileError, match="no template in"):
        load_intents()


# Templates by language, counted from the raw files.
TEMPLATES = {"de": 1711, "nl": 1316, "en": 862, "fr": 755, "eu": 748, "ru": 705, "zh-CN": 700, "hy": 697}  # fmt: skip


def test_the_real_one():
    needs("intents")
    table = load_intents()
    assert len(table) == 74_244
    assert len(table.provenance["intents"]) == 42
    assert len(set(table["language"].tolist())) == 65
    assert set(table["label"].tolist()) == set(range(42))
    archive = open_archive("intents")
    for language, count in TEMPLATES.items():
        page = json.loads(archive.read(f"home_assistant_intents/data/{language}.json"))
        templates = [
            text
            for entry in page["intents"].values()
            for block in entry["data"]
            for text in block["sentences"]
        ]
        assert len(templates) == count
        known = {template_id(text) for text in templates}
        found = set(table["template"][table["language"] == language].tolist())
        assert found <= known
        assert len(found) > 0.9 * len(known)
    for column in ("template", "text"):
        pairs = set(zip(table[column].tolist(), table["split"].tolist(), strict=True))
        assert len(pairs) == len(set(table[column].tolist()))
