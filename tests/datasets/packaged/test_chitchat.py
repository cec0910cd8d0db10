"""Conversations by person, the choice of the reply, and splits that share nobody."""

import collections
import json

import naive_bayes
import numpy as np
import pytest
from small_archives import needs, register

from fedjax_fm.datasets import hold_out_people, load_chitchat, reply_choice, split_of
from fedjax_fm.datasets.table import DataFileError


def message(sender, text):
    return {"sender": sender, "text": text, "timestamp": "2018"}


def conversation(*turns, **more):
    return {"messages": [[message(sender, text) for text in texts] for sender, *texts in turns]} | more  # fmt: skip


SMALL = {
    "c1": conversation(
        ("ann", "Hi", "you there?"),
        ("bob", "Yes "),
        ("bob", "I am"),
        ("ann", "  "),
        ("bob", "And you?"),
        ("ann", "me too"),
        prompt="Mozart or Beethoven?",
        ratings={"witty": 1, "interesting": 10, "upbeat": 5},
    ),
    "c2": conversation(("ann", "Hello"), ("ann", "anybody?")),
    "c3": conversation(("bob", "Hey"), ("cleo", "Hey yourself")),
}


def load(monkeypatch, tmp_path, conversations):
    content = json.dumps(conversations).encode()
    members = {
        "chitchat_dataset/__init__.py": b"raise ImportError",
        "chitchat_dataset/dataset.json": content,
    }
    register(monkeypatch, tmp_path, "chitchat", members)
    return load_chitchat()


def test_a_small_package(monkeypatch, tmp_path):
    table = load(monkeypatch, tmp_path, SMALL)
    assert table["person"].tolist() == ["ann", "bob", "bob", "cleo"]
    assert table["partner"].tolist() == ["bob", "ann", "cleo", "bob"]
    assert table["conversation"].tolist() == ["c1", "c1", "c3", "c3"]
    assert table["messages"][0] == (
        {"role": "assistant", "content": "Hi\nyou there?"},
        {"role": "user", "content": "Yes\nI am\nAnd you?"},
        {"role": "assistant", "content": "me too"},
    )
    assert [m["role"] for m in table["messages"][1]] == ["user", "assistant", "user"]
    assert table["prompt"].tolist() == ["Mozart or Beethoven?"] * 2 + ["", ""]
    ratings = [table[name].tolist() for name in ("witty", "interesting", "upbeat")]
    assert ratings == [[1, 1, 0, 0], [10, 10, 0, 0], [5, 5, 0, 0]]
    assert table.provenance["dropped"] == {"one_sided": 1}
    assert table["split"].tolist() == [
        split_of(name) for name in ("c1", "c1", "c3", "c3")
    ]


def test_a_package_without_conversations(monkeypatch, tmp_path):
    with pytest.raises(DataFileError, match="no conversation of two people"):
        load(monkeypatch, tmp_path, {"c2": SMALL["c2"]})


def many(people=12, conversations=90, seed=0):
    """Conversations of random pairs and lengths, with replies that say whose they are."""
    random = np.random.default_rng(seed)
    found = {}
    for number in range(conversations):
        a, b = random.choice(people, 2, replace=False)
        turns = [
            (f"p{(a, b)[i % 2]}", f"reply {i} of talk {number} {'ok' * (i % 3)}")
            for i in range(int(random.integers(2, 14)))
        ]
        found[f"talk {number}"] = conversation(*turns)
    return found


@pytest.fixture
def talks(monkeypatch, tmp_path):
    return load(monkeypatch, tmp_path, many())


def test_neither_context_nor_reply_alone_says_anything(talks):
    table = reply_choice(talks)
    labels = {column: collections.defaultdict(list) for column in ("context", "reply")}
    for row in range(len(table)):
        for column, found in labels.items():
            key = (table["person"][row], table["split"][row], table[column][row])
            found[key].append(int(table["label"][row]))
    for found in labels.values():
        assert all(sorted(values) == [0, 1] for values in found.values())
    assert len(table) > 300


def test_replies_are_true_or_of_the_same_person_elsewhere_in_the_split(talks):
    table = reply_choice(talks)
    said = collections.defaultdict(set)  # by person and conversation
    for row in range(len(talks)):
        key = (str(talks["person"][row]), str(talks["conversation"][row]))
        own = [m["content"] for m in talks["messages"][row] if m["role"] == "assistant"]
        said[key] |= set(own)
    for row in range(len(table)):
        person, name = str(table["person"][row]), str(table["conversation"][row])
        reply = table["reply"][row]
        assert (reply in said[person, name]) == bool(table["label"][row])
        where = [c for (p, c), texts in said.items() if p == person and reply in texts]
        assert {split_of(c) for c in where} == {str(table["split"][row])}
        if table["label"][row]:
            number = int(reply.split()[1])
            lines = table["context"][row].split("\n")
            assert [int(line.split()[1]) for line in lines] == list(
                range(max(0, number - 3), number)
            )


def test_what_is_left_out_is_counted(talks):
    table = reply_choice(talks)
    answers = sum(
        m["role"] == "assistant" for messages in talks["messages"] for m in messages[1:]
    )
    dropped = table.provenance["dropped"]
    assert len(table) // 2 + sum(dropped.values()) == answers
    longer = reply_choice(talks, least_words=6)
    assert longer.provenance["dropped"]["short"] > dropped.get("short", 0)
    assert all(len(text.split()) >= 6 for text in longer["reply"])


def test_seeds_and_turns(talks):
    table = reply_choice(talks)
    assert reply_choice(talks)["reply"].tolist() == table["reply"].tolist()
    assert reply_choice(talks, seed=1)["reply"].tolist() != table["reply"].tolist()
    one = reply_choice(talks, turns=1)
    assert all("\n" not in text for text in one["context"])
    with pytest.raises(ValueError, match="least_words=0, turns=3"):
        reply_choice(talks, least_words=0)


def test_somebody_with_one_conversation_is_left_out(monkeypatch, tmp_path):
    one = {"c": conversation(*[(f"p{i % 2}", f"a reply number {i}") for i in range(9)])}
    with pytest.raises(ValueError, match="replies in two conversations of a split"):
        reply_choice(load(monkeypatch, tmp_path, one))


@pytest.mark.parametrize("seed", range(5))
def test_people_who_are_held_out_are_nowhere_in_training(talks, seed):
    rows = hold_out_people(talks, share=0.3, seed=seed)
    train, test = (talks.select(rows[name]) for name in ("train", "test"))
    trained = {*train["person"].tolist(), *train["partner"].tolist()}
    assert not trained & set(test["person"].tolist())
    assert not set(train["conversation"].tolist()) & set(test["conversation"].tolist())


def test_shares_of_people_that_make_no_sense(talks):
    with pytest.raises(ValueError, match="expected 0 < share < 1, got share=1"):
        hold_out_people(talks, share=1)
    with pytest.raises(ValueError, match="no row is left for 'test'"):
        hold_out_people(talks, share=1e-9)
    with pytest.raises(ValueError, match="no row is left for 'train'"):
        hold_out_people(talks, share=1 - 1e-9)


def test_the_real_one():
    needs("chitchat")
    table = load_chitchat()
    assert len(table) == 8034
    assert table.provenance["dropped"] == {"one_sided": 3151}  # of 7,168
    assert len(table) // 2 + 3151 == 7168
    assert len(set(table["person"].tolist())) == 1195
    assert set(np.unique(table["witty"]).tolist()) == set(range(11))
    pairs = set(
        zip(table["conversation"].tolist(), table["split"].tolist(), strict=True)
    )
    assert len(pairs) == 4017
    choice = reply_choice(table)
    assert len(choice) == 212_242
    assert choice["label"].mean() == 0.5
    few = choice.select(np.random.default_rng(0).permutation(len(choice))[:30_000])
    for column in ("context", "reply"):
        found = naive_bayes.accuracy(few[column], few["label"], few["split"])
        assert abs(found - 0.5) < 0.04
    rows = hold_out_people(table)
    assert {name: len(found) for name, found in rows.items()} == {
        "train": 6038,
        "test": 1062,
    }
