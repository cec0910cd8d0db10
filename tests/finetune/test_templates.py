"""Templates: what is trained is the answer and its end, in each of them."""

import json

import numpy as np
import pytest
from small_checkpoints import LLAMA, TEMPLATE, checkpoint
from tokenizers import Tokenizer, processors

from fedjax_fm.finetune.examples import choose, make
from fedjax_fm.finetune.files import Source
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.templates import chat_of
from fedjax_fm.finetune.tokens import conversations, texts
from fedjax_fm.runs.errors import UsageError

TALK = [
    {"role": "user", "content": "say red"},
    {"role": "assistant", "content": "one {prompt} two"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "llama"
    return str(checkpoint(place, LLAMA, TEMPLATE))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(checkpoint(tmp_path_factory.mktemp("model") / "base", LLAMA))


TEXTS = {
    "chat": "<|user|> say red <|assistant|> one {prompt} two </s> ",
    "flan": "say red\none {prompt} two</s>",
    "Q: {prompt}\\nA: {response}": "Q: say red\nA: one {prompt} two</s>",
    "<{prompt}> [{response}]": "<say red> [one {prompt} two]</s>",
    "alpaca_short": "### Instruction:\nsay red\n\n### Response:\none {prompt} two</s>",
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_of_each_template(name, model):
    chat = chat_of(Settings(model=model, template=name))
    assert chat.text(TALK) == TEXTS[name]
    prompt = chat.text(TALK[:1], add_generation_prompt=True)
    assert TEXTS[name].startswith(prompt)
    assert "one" not in prompt


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "chat"])
def test_a_base_model_needs_no_template_of_its_own(name, base):
    assert chat_of(Settings(model=base, template=name)).text(TALK) == TEXTS[name]


@pytest.mark.parametrize("name", ["flan", "alpaca_short"])
def test_a_base_model_reads_the_begin_token_that_its_tokenizer_puts(name, tmp_path):
    place = checkpoint(tmp_path / "base", LLAMA)
    made = Tokenizer.from_file(str(place / "tokenizer.json"))
    begin = made.token_to_id("[CLS]")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", begin)]
    )
    made.save(str(place / "tokenizer.json"))
    path = place / "tokenizer_config.json"
    fields = json.loads(path.read_text()) | {"bos_token": "[CLS]"}
    path.write_text(json.dumps(fields))
    settings = Settings(model=str(place), template=name)
    chat = chat_of(settings)
    assert chat.text(TALK) == "[CLS]" + TEXTS[name]
    assert chat.prompt_ids(TALK[:1]).count(begin) == 1
    source = Source(table={"text": ["one"]}, name="t", kind="jsonl", sha256="")
    examples = make(source, choose(Settings(text="text"), source))
    ids = texts(examples, chat, settings).arrays["input_ids"][0, :3]
    assert ids.tolist() == [begin, *map(made.token_to_id, ("one", "</s>"))]


def test_a_base_model_has_no_chat(base):
    with pytest.raises(UsageError, match="--template alpaca or your own"):
        chat_of(Settings(model=base))


def test_a_file_of_jinja(base, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    assert chat_of(Settings(model=base, template=str(path))).text(TALK) == TEXTS["chat"]
    with pytest.raises(UsageError, match="cannot read the template"):
        chat_of(Settings(model=base, template="nowhere.jinja"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{prompt} and no more", r"\{response\} 0 times"),
        ("{response} alone", r"\{prompt\} 0 times"),
        ("{response} before {prompt}", "before its prompt"),
        ("{prompt} {response} {response}", r"\{response\} 2 times"),
        ("alpacca", "did you mean 'alpaca'"),
    ],
)
def test_a_template_that_loses_the_answer_is_refused(text, said, model):
    with pytest.raises(UsageError, match=said):
        chat_of(Settings(model=model, template=text))


def encoded(model, rows, **more):
    settings = Settings(model=model, prompt="p", response="r", input="i", **more)
    columns = {name: [row.get(name) for row in rows] for name in "pir"}
    source = Source(table=columns, name="t", kind="jsonl", sha256="")
    examples = make(source, choose(settings, source))
    chat = chat_of(settings)
    return conversations(examples, chat, settings), chat


def test_answers_alone_have_labels(model):
    found, chat = encoded(model, [{"p": "say red", "r": "one it is"}])
    ids, labels = found.arrays["input_ids"][0], found.arrays["labels"][0]
    trained = ids[labels != -100]
    assert chat.tokenizer.decode(trained, skip_special_tokens=False) == "one it is </s>"
    assert np.array_equal(labels[labels != -100], trained)


def test_inputs_go_under_the_prompt(model):
    found, chat = encoded(model, [{"p": "say", "i": "red", "r": "one"}])
    text = chat.tokenizer.decode(found.arrays["input_ids"][0])
    assert text.split()[:2] == ["say", "red"]


def test_long_examples_are_cut_and_counted(model):
    rows = [
        {"p": "say", "r": "one two"},
        {"p": "say", "r": "one " * 20},
        {"p": "say " * 20, "r": "one"},
    ]
    found, _ = encoded(model, rows, max_length=8)
    assert found.usable.tolist() == [True, True, False]
    assert found.counts["examples cut to the longest length"] == 2
    # <|user|>, say, <|assistant|>, 20 times one, </s>; and likewise
    assert found.counts["tokens cut off"] == (24 - 8) + (24 - 8)
    assert found.counts["examples whose answer was cut off whole"] == 1
    assert found.arrays["input_ids"].shape == (3, 8)


def test_a_conversation_that_the_template_refuses_names_its_row(model):
    settings = Settings(model=model, messages="m", template="flan")
    talk = [*TALK, *TALK]
    source = Source(table={"m": [TALK, talk]}, name="t", kind="jsonl", sha256="")
    examples = make(source, choose(settings, source))
    with pytest.raises(UsageError, match=r"row 1: .*one prompt and one answer"):
        conversations(examples, chat_of(settings), settings)
