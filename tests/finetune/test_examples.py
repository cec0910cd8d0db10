"""Which column is what, and which rows hold no example."""

import numpy as np
import pytest

from fedjax_fm.finetune.examples import Roles, choose, key_of, make
from fedjax_fm.finetune.files import Source
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.models.conversations import plain_messages
from fedjax_fm.runs.errors import UsageError


def source_of(**columns):
    return Source(table=columns, name="t", kind="jsonl", sha256="")


def made(settings=None, **columns):
    source = source_of(**columns)
    return make(source, choose(settings or Settings(), source))


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (("instruction", "output", "user"), "conversation"),
        (("instruction", "input", "output"), "conversation"),
        (("prompt", "completion"), "conversation"),
        (("messages", "id"), "conversation"),
        (("Text", "LABEL"), "classes"),
        (("sentence1", "sentence2", "label"), "classes"),
        (("image", "label"), "classes"),
        (("text", "title"), "text"),
    ],
)
def test_usual_names_are_found(columns, kind):
    roles = choose(Settings(), source_of(**{name: ["a"] for name in columns}))
    assert roles.guessed
    assert roles.kind == kind


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("instruction", "output", "text"), "in several ways"),
        (("instruction", "prompt", "output"), "in several ways"),
        (("a", "b"), "fit no kind"),
        (("instruction", "user"), "fit no kind"),
    ],
)
def test_columns_that_can_be_read_in_no_way_or_in_several(columns, said):
    with pytest.raises(UsageError, match=said) as error:
        choose(Settings(), source_of(**{name: ["a"] for name in columns}))
    for name in columns:
        assert name in str(error.value)


def test_a_column_that_is_not_there_names_the_nearest():
    settings = Settings(prompt="instrction", response="output")
    with pytest.raises(UsageError, match="did you mean 'instruction'"):
        choose(settings, source_of(instruction=["a"], output=["b"]))


@pytest.mark.parametrize(
    "given", [{"prompt": "a"}, {"text": "a", "response": "b"}, {"label": "a"}]
)
def test_roles_that_make_no_example_are_refused(given):
    with pytest.raises(UsageError, match="do not make an example"):
        choose(Settings(**given), source_of(a=["x"], b=["y"]))


def test_rows_without_an_example_are_counted():
    found = made(
        instruction=["a", "", None, "b", "c"],
        output=["x", "y", "z", "  ", float("nan")],
    )
    assert found.rows.tolist() == [0]
    assert found.dropped == {
        "empty prompt": 1,
        "missing prompt": 1,
        "empty response": 1,
        "missing response": 1,
    }


def test_no_row_that_can_be_used_is_an_error():
    with pytest.raises(UsageError, match="2 with empty text"):
        made(text=["", " "])


def test_messages_may_be_json_and_sharegpt():
    talk = '[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'
    found = made(messages=[talk, [{"role": "user", "content": "alone"}]])
    assert [message["role"] for message in found.values[0]] == ["user", "assistant"]
    assert found.dropped == {"no answer of the assistant": 1}


def test_a_conversation_may_begin_with_the_assistant():
    first = {"role": "assistant", "content": "hello"}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = made(messages=[[first, *talk], [first], [first, talk[0]]])
    assert [message["content"] for message in found.values[0]] == ["a", "b"]
    assert found.dropped == {
        "a first message of the assistant, which is left out": 1,
        "no prompt": 1,
        "no answer of the assistant": 1,
    }


def test_inputs_may_be_missing():
    found = made(instruction=["a", "b"], input=["about", None], output=["x", "y"])
    assert found.values[0][0]["input"] == "about"
    assert "input" not in found.values[1][0]


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        (["no", "yes", "no"], [0, 1, 0], ("no", "yes")),
        ([3, 1, 3], [1, 0, 1], ("1", "3")),
        (["10", "9", "10"], [1, 0, 1], ("9", "10")),
        ([1.0, 0.0, 1.0], [1, 0, 1], ("0", "1")),
        ([True, False, True], [1, 0, 1], ("0", "1")),
    ],
)
def test_classes_are_numbered_in_order(labels, numbers, classes):
    found = made(text=["a", "b", "c"], label=labels)
    assert found.labels.tolist() == numbers
    assert found.classes == classes


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.5, 1.0, 2.0], "no class"),
        (["a", 1, 2], "mixes numbers and words"),
        ([1, 1, 1], "nothing to tell apart"),
        ([[1], [2], [1]], "no class"),
    ],
)
def test_labels_that_are_no_classes(labels, said):
    with pytest.raises(UsageError, match=said):
        made(text=["a", "b", "c"], label=labels)


def test_a_column_of_many_values_is_no_class():
    with pytest.raises(UsageError, match="does it hold classes"):
        made(text=["a"] * 10, label=list(range(10)))


def test_a_label_that_is_missing_leaves_its_row_out():
    found = made(text=["a", "b", "c", "d"], label=[1.0, float("nan"), 0.0, 1.0])
    assert found.rows.tolist() == [0, 2, 3]
    assert found.dropped == {"missing label": 1}


@pytest.mark.parametrize("word", ["²", "--5"])
def test_words_that_look_like_numbers(word):
    table = {"text": ["a", "b"] * 3, "label": [word, "x"] * 3}
    assert made(**table).classes == tuple(sorted((word, "x")))


def test_what_a_trained_model_reads_needs_no_class_and_no_answer():
    before = made(text=["a", "b"] * 3, label=["no", "yes"] * 3)
    roles = Roles({"text": "text", "label": "label"}, guessed=False)

    def read(**columns):
        return make(source_of(**columns), roles, before)

    assert read(text=["c", "d"]).labels.tolist() == [-1, -1]
    found = read(text=["c", "d", "e"], label=["yes", None, "yes"])
    assert found.labels.tolist() == [1, -1, 1]
    assert found.classes == ("no", "yes")
    with pytest.raises(UsageError, match="'maybe'"):
        read(text=["c"], label=["maybe"])

    roles = Roles({"prompt": "q", "response": "a"}, guessed=False)
    before = make(source_of(q=["x"], a=["y"]), roles)
    found = make(source_of(q=["1", "2"], a=["3", ""]), roles, before)
    said = [[m["content"] for m in messages] for messages in found.values]
    assert said == [["1", "3"], ["2"]]
    found = make(source_of(q=["1", ""]), roles, before)
    assert found.rows.tolist() == [0]


def test_images_are_whole_numbers():
    halves = [[[0.2, 0.5], [0.1, 0.9]]] * 4
    with pytest.raises(UsageError, match="whole numbers from 0 to 255"):
        made(image=halves, label=[0, 1] * 2)
    grey = [[[[7], [255]], [[0], [1]]]] * 4
    (first, *_) = made(image=grey, label=[0, 1] * 2).values
    assert first.tolist() == [[7, 255], [0, 1]]
    stored = [{"bytes": None, "path": "a.png"}] * 4
    assert made(image=stored, label=[0, 1] * 2).values[0] == "a.png"


def test_calls_of_tools_and_parts_tell_examples_apart():
    def called(number):
        call = {"function": {"name": "f", "arguments": {"a": number}}}
        question = {"role": "user", "content": [{"type": "text", "text": "q"}]}
        return plain_messages([question, {"role": "assistant", "tool_calls": [call]}])

    assert key_of(called(1)) == key_of(called(1))
    assert key_of(called(1)) != key_of(called(2))


def test_text_that_is_none_names_its_row():
    with pytest.raises(
        UsageError, match=r"row 1 of t: expected the text as text, got 3"
    ):
        made(text=["a", 3])


def test_equal_examples_have_one_key():
    talk = [{"role": "user", "content": "a "}, {"role": "assistant", "content": "b"}]
    same = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b"}]
    other = [{"role": "user", "content": "a", "input": "x"}, talk[1]]
    assert key_of(talk) == key_of(same)
    assert key_of(talk) != key_of(other)
    assert key_of("a", 1) != key_of("a", 2)
    assert key_of(np.zeros((2, 2), np.uint8), 0) == key_of(
        np.zeros((2, 2), np.uint8), 0
    )
