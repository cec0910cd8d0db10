"""Rows written by hand in each schema of the hub, against the normal form written by hand."""

import numpy as np
import pytest

from fedjax_fm.datasets import DataFileError
from fedjax_fm.datasets.named import rows
from fedjax_fm.datasets.named.benchmark import Dropped
from fedjax_fm.datasets.named.table import BENCHMARKS, find

ALPACA = {
    "instruction": "Add.",
    "input": "1 2",
    "output": "3",
    "text": "not to be read",
}


def said(*turns):
    roles = ("user", "assistant")
    return [
        {"role": roles[k % 2], "content": content} for k, content in enumerate(turns)
    ]


def one(name, row):
    (found,) = find(name).parse([row])
    return found


# FlowerTune's rules, task by task: which columns make the prompt, and which are dropped.
FLOWERTUNE = {
    "flowertune/general": "Add.",  # `input` is ignored
    "flowertune/finance": "Add. 1 2",
    "flowertune/medical": "1 2",  # `instruction` is dropped
    "flowertune/code": "Add. 1 2",
}


@pytest.mark.parametrize("name", FLOWERTUNE)
def test_flowertune_makes_its_prompt_of_these_columns(name):
    assert one(name, ALPACA) == {"messages": said(FLOWERTUNE[name], "3")}


def test_flowertune_keeps_the_blank_before_an_empty_input():
    found = one("flowertune/code", {**ALPACA, "input": ""})
    assert found["messages"][0]["content"] == "Add. "


@pytest.mark.parametrize(
    ("name", "missing"),
    [("flowertune/general", "input"), ("flowertune/medical", "instruction")],
)
def test_flowertune_does_not_need_what_it_drops(name, missing):
    row = {key: value for key, value in ALPACA.items() if key != missing}
    assert one(name, row)["messages"][1]["content"] == "3"


@pytest.mark.parametrize("name", ["pfl/alpaca", "alpaca-gpt4"])
def test_alpaca_keeps_the_input_apart(name):
    with_input = one(name, ALPACA)["messages"]
    assert with_input[0] == {"role": "user", "content": "Add.", "input": "1 2"}
    assert one(name, {**ALPACA, "input": ""})["messages"] == said("Add.", "3")


def test_dolly():
    row = {
        "instruction": "Who?",
        "context": "Ann came.",
        "response": "Ann",
        "category": "closed_qa",
    }
    found = one("dolly/shepherd", row)
    assert found["category"] == "closed_qa"
    assert found["messages"][0]["input"] == "Ann came."
    assert "input" not in one("dolly/fedkseed", {**row, "context": ""})["messages"][0]


def test_natural_instructions_takes_the_task_for_the_client():
    row = {
        "task_name": "task001_quoref",
        "id": "task001-1",
        "definition": "Write a question.",
        "inputs": "Passage: ...",
        "targets": "Who?",
    }
    found = one("ni/fedkseed", row)
    assert found["client"] == found["category"] == "task001_quoref"
    assert found["messages"][0]["content"] == "Write a question."
    assert found["messages"][0]["input"] == "Passage: ..."


@pytest.mark.parametrize(
    ("answer", "category"),
    [
        ("true", "true/false"),
        ("false", "true/false"),
        ("solution2", "solution"),
        ("ending4", "ending"),
        ("option1", "option"),
        ("answer5", "answer"),
    ],
)
def test_commonsense_tells_tasks_by_the_form_of_the_answer(answer, category):
    row = {"instruction": "Is it?", "input": "", "output": f"It is {answer}"}
    found = one("commonsense/fslora", {**row, "answer": answer})
    assert found == {
        "messages": said("Is it?", f"It is {answer}"),
        "category": category,
    }


def test_fedllm_bench():
    row = {"client": 7, "instruction": "Hi", "response": "Hello"}
    expected = {"messages": said("Hi", "Hello"), "client": "7"}
    for name in ("fedllm/aya", "fedllm/chatbot-it", "fedllm/wildchat-single"):
        assert one(name, row) == expected


def conversation(*turns):
    pairs = [{"from": who, "value": value} for who, value in turns]
    return {"client": "a", "conversations": pairs}


def test_several_turns_begin_with_the_user_and_end_with_an_answer():
    row = conversation(
        ("gpt", "Welcome"), ("human", "A"), ("gpt", "B"), ("human", "C"), ("gpt", "D"),
        ("human", "E"),
    )  # fmt: skip
    assert one("fedllm/wildchat-multi", row)["messages"] == said("A", "B", "C", "D")
    without = one("fedllm/wildchat-multi", conversation(("human", "A")))
    assert without == Dropped("no answer")


def test_turns_of_strangers_or_out_of_order_are_refused():
    with pytest.raises(DataFileError, match="'tool'"):
        one("fedllm/wildchat-multi", conversation(("tool", "A")))
    twice = conversation(("human", "A"), ("human", "B"))
    with pytest.raises(DataFileError, match="turn 1 is the user's again"):
        one("fedllm/wildchat-multi", twice)


def test_preferences():
    row = {"client": "u", "instruction": "Q", "chosen": "good", "rejected": "bad"}
    assert one("fedllm/chatbot-pa", row) == {
        "prompt": "Q",
        "chosen": "good",
        "rejected": "bad",
        "client": "u",
    }


def aya_row(user, number):
    return {
        "inputs": f"q{number}",
        "targets": f"a{number}",
        "language": "French",
        "user_id": user,
    }


def test_aya_makes_pseudo_users_of_the_surplus_behind_all_others():
    given = [aya_row("big", k) for k in range(130)] + [aya_row("small", 130)]
    found = list(rows.aya(given))
    clients = [example["client"] for example in found]
    assert list(dict.fromkeys(clients)) == ["big", "small", "big-1", "big-2"]
    assert [clients.count(c) for c in ("big", "small", "big-1", "big-2")] == [
        64,
        1,
        64,
        2,
    ]
    big2 = [example["messages"][0]["content"] for example in found[-2:]]
    assert big2 == ["q128", "q129"]
    assert {example["category"] for example in found} == {"French"}


def test_oasst_pairs_an_answer_with_its_parent_and_takes_its_author():
    common = {"lang": "en"}
    tree = [
        {**common, "message_id": "q", "parent_id": None, "user_id": "asker", "text": "Q", "role": "prompter"},
        {**common, "message_id": "a", "parent_id": "q", "user_id": "ann", "text": "A", "role": "assistant"},
        {**common, "message_id": "b", "parent_id": "q", "user_id": "bob", "text": "B", "role": "assistant"},
        {**common, "message_id": "q2", "parent_id": "a", "user_id": "asker", "text": "Q2", "role": "prompter"},
        {**common, "message_id": "a2", "parent_id": "q2", "user_id": "bob", "text": "A2", "role": "assistant"},
        {**common, "message_id": "lost", "parent_id": "gone", "user_id": "bob", "text": "?", "role": "assistant"},
    ]  # fmt: skip
    *found, lost = rows.oasst(tree)
    assert [example["client"] for example in found] == ["ann", "bob", "bob"]
    assert [example["messages"] for example in found] == [
        said("Q", "A"),
        said("Q", "B"),
        said("Q2", "A2"),
    ]
    assert lost == Dropped("no question")


GLUE = {
    "glue/cola": {"sentence": "It is.", "label": 1},
    "glue/sst2": {"sentence": "fine", "label": 1},
    "glue/mrpc": {"sentence1": "a", "sentence2": "b", "label": 0},
    "glue/qqp": {"question1": "a", "question2": "b", "label": 0},
    "glue/stsb": {"sentence1": "a", "sentence2": "b", "label": 3.25},
    "glue/mnli": {"premise": "a", "hypothesis": "b", "label": 2},
    "glue/qnli": {"question": "a", "sentence": "b", "label": 1},
    "glue/rte": {"sentence1": "a", "sentence2": "b", "label": 1},
    "glue/wnli": {"sentence1": "a", "sentence2": "b", "label": 1},
    "glue/snli": {"premise": "a", "hypothesis": "b", "label": 2},
    "20news": {"text": "a post", "label": 19, "label_text": "talk"},
}


@pytest.mark.parametrize("name", GLUE)
def test_texts_and_labels(name):
    row = GLUE[name]
    *texts, label = [value for key, value in row.items() if key != "label_text"]
    expected = dict(zip(("text", "text_pair"), texts, strict=False))
    assert one(name, {**row, "idx": 0}) == {**expected, "label": label}


def test_a_row_without_a_label_is_dropped_and_says_why():
    row = {"premise": "a", "hypothesis": "b", "label": -1}
    assert one("glue/snli", row) == Dropped("no label")


def test_pictures_are_bytes_with_three_axes():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    row = {"image": grey, "writer_id": "f3", "hsf_id": 0, "character": 61}
    found = one("femnist", row)
    assert found["client"] == "f3"
    assert found["label"] == 61
    np.testing.assert_array_equal(found["image"], grey[:, :, None])
    colour = np.zeros((4, 4, 3), np.uint8)
    assert one("cifar10", {"img": colour, "label": 3})["image"].shape == (4, 4, 3)
    many = {"img": colour, "fine_label": 99, "coarse_label": 3}
    assert one("cifar100", many)["label"] == 99
    with pytest.raises(DataFileError, match="float64"):
        rows.pixels(np.zeros((4, 4)))


def test_a_pillow_image_is_read_as_the_hub_gives_it():
    image = pytest.importorskip("PIL.Image")
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    np.testing.assert_array_equal(rows.pixels(image.fromarray(grey))[:, :, 0], grey)


def test_posts():
    row = {"client": 5, "tokens": "how do i"}
    assert one("stackoverflow", row) == {"text": "how do i", "client": "5"}


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_missing_column_is_named(name):
    benchmark = BENCHMARKS[name]
    with pytest.raises(DataFileError, match=r"expected a column '\w+'"):
        list(benchmark.parse([{"other": 1}]))
