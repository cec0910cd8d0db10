"""Tables of pairs and questions, their controls, and what is left out."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from fedjax_fm import datasets, preferences
from fedjax_fm.datasets.table import Table

WORDS = ["?", "one", "two", "three", "four", "five", "so", "yes", "no"]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    found = Tokenizer(models.WordLevel(vocabulary, "?"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return found


def table(*rows):
    columns = zip(*rows, strict=True)
    names = ("prompt", "chosen", "rejected")
    arrays = {
        name: np.array(list(column), object)
        for name, column in zip(names, columns, strict=True)
    }
    return Table(arrays, {"name": "small"})


ROWS = table(
    ("one two", "three", "four five"),
    ("one", "so", "so"),
    ("one two three four five", "so", "no"),
    ("one", "one two three four five", "no"),
    ("one", "", "no"),
)


def test_pairs_of_texts(tokenizer):
    found = preferences.tokenize_pairs(
        ROWS, tokenizer, length=6, pad_token_id=0, eos_token_id=7
    )
    assert found.rows.tolist() == [0]
    assert found.dropped == {"equal": 1, "prompt_fills": 1, "too_long": 1, "empty": 1}
    assert found.arrays["chosen_input_ids"].tolist() == [[1, 2, 3, 7, 0, 0]]
    assert found.arrays["rejected_labels"].tolist() == [[-100, -100, 4, 5, 7, -100]]
    with pytest.raises(ValueError, match=r"no pair of 1 can be used: \{'equal': 1\}"):
        preferences.tokenize_pairs(
            ROWS.select([1]), tokenizer, length=6, pad_token_id=0
        )
    with pytest.raises(ValueError, match=r"\{prompt\} in the template"):
        preferences.tokenize_pairs(
            ROWS, tokenizer, length=6, pad_token_id=0, template="Q:"
        )


def test_the_named_benchmark_of_pairs():
    data = datasets.load("fedllm/chatbot-pa", source="stand-in", limit=60)
    words = " ".join([*data.train["prompt"], *data.train["chosen"]]).split()
    vocabulary = {"?": 0} | {word: i + 1 for i, word in enumerate(sorted(set(words)))}
    own = Tokenizer(models.WordLevel(vocabulary, "?"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = preferences.tokenize_pairs(data.train, own, length=40, pad_token_id=0)
    assert len(found.rows) + sum(found.dropped.values()) == len(data.train)
    assert len(found.rows) > len(data.train) / 2
    assert set(data.client[found.rows]) <= set(data.client)


def test_questions(tokenizer):
    questions = datasets.make_reasoning(3, ["coin", "weekday"])
    found = preferences.tokenize_questions(
        questions, tokenizer, length=40, pad_token_id=0, eos_token_id=7
    )
    assert len(found.rows) + found.dropped["too_long"] == 6
    np.testing.assert_array_equal(found.arrays["question"], found.rows)
    is_right = preferences.reasoning_check(questions)
    for row in range(6):
        assert is_right(questions["answer"][row], row) == 1.0
        assert is_right("perhaps so", row) == 0.0
    with pytest.raises(ValueError, match="fits into length=1"):
        preferences.tokenize_questions(questions, tokenizer, length=1, pad_token_id=0)


def test_controls():
    many = table(*[(f"p{i}", "a b c", "d") for i in range(200)])
    assert preferences.length_accuracy(many) == 1.0
    mixed = preferences.shuffled_pairs(many, seed=3)
    assert 0.4 < preferences.length_accuracy(mixed) < 0.6
    for row in range(200):
        assert {mixed["chosen"][row], mixed["rejected"][row]} == {"a b c", "d"}
    assert mixed.provenance["control"] == "shuffled, seed 3"
    again = preferences.shuffled_pairs(many, seed=3)
    assert again["chosen"].tolist() == mixed["chosen"].tolist()


# Conversations with ratings


def talk(*texts):
    turns = ["assistant", "user"] * len(texts)
    return tuple({"role": r, "content": t} for r, t in zip(turns, texts, strict=False))


def rated(rows):
    """rows: (person, topic, ratings, texts)."""
    messages = np.empty(len(rows), object)
    messages[:] = [talk(*row[3]) for row in rows]
    marks = np.array([row[2] for row in rows])
    columns = {
        "messages": messages,
        "person": np.array([row[0] for row in rows]),
        "prompt": np.array([row[1] for row in rows], object),
        "split": np.array(["train"] * len(rows)),
    }
    columns |= {
        name: marks[:, place]
        for place, name in enumerate(("witty", "interesting", "upbeat"))
    }
    return Table(columns, {"name": "chitchat"})


def test_conversations_with_ratings_become_pairs():
    rows = [
        ("p", "Tea?", (9, 9, 9), ("best", "x", "of all", "x", "three", "x", "four")),
        ("p", "Tea?", (2, 2, 2), ("worst",)),
        ("p", "Tea?", (4, 4, 4), ("low",)),
        ("p", "Tea?", (6, 6, 6), ("high",)),
        ("p", "Tea?", (5, 5, 5), ("default",)),
        ("p", "Tea?", (0, 9, 9), ("unrated",)),
        ("p", "", (9, 9, 9), ("no topic",)),
        ("p", "Film?", (3, 3, 3), ("alone",)),
        ("q", "Tea?", (7, 7, 7), ("tied one",)),
        ("q", "Tea?", (7, 7, 7), ("tied two",)),
    ]
    found = datasets.rated_pairs(rated(rows))
    assert found["chosen"].tolist() == ["best\nof all\nthree", "high"]
    assert found["rejected"].tolist() == ["worst", "low"]
    assert found["gap"].tolist() == [7.0, 2.0]
    assert found["prompt"].tolist() == ["Tea?"] * 2
    assert found.provenance["dropped"] == {
        "default": 1,
        "unrated": 1,
        "no_topic": 1,
        "single": 1,
        "tie": 2,
    }


def test_ratings_that_are_not_there_are_refused():
    table = rated([("p", "Tea?", (9, 9, 9), ("a",)), ("p", "Tea?", (9, 9, 9), ("b",))])
    with pytest.raises(ValueError, match="without any"):
        datasets.rated_pairs(table)
    with pytest.raises(ValueError, match="funny"):
        datasets.rated_pairs(table, ["funny"])
    with pytest.raises(ValueError, match="turns=0"):
        datasets.rated_pairs(table, turns=0)
