"""Templates: their bytes, the texts of the authors' format strings, and where the loss begins."""

import hashlib

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import fedjax_fm as ffm
from fedjax_fm.datasets.named import TEMPLATES, list_names
from fedjax_fm.datasets.named.table import BENCHMARKS

TASK = "Below is an instruction that describes a task"
MORE = ", paired with an input that provides further context."
REQUEST = "Write a response that appropriately completes the request."
SHORT = "Write a response for the task request."

# SHA-256 of each text: a change of a template is a change of the benchmark.
HASHES = {
    "flowertune": "cf9a9ed5705eea5b6c96def67399202ed09dd879f7ad52f6fea97084bd640f98",
    "openfedllm": "40ca0ee94420a09b5c3811a40c6d508c41e6d4a03371e8f3671cd61f62272041",
    "vicuna": "feaf805f8be074196f45aafee0948017553ad05a3a388850d722f37754b90846",
    "alpaca": "1461589191ac5fd568901bb3fa482d029722ad95db1b82e99d063a0eb9e5dad9",
    "alpaca-lora": "a2ab43ace1a12b49665a6606326d006fbb6adbdcd9c69727305da147f6723961",
    "fedkseed": "2bc5f6cebb2b957479833352fa13989bce8bbf91420fdfb105ebe337b23a394a",
    "raw": "5e038197c89daee5d4e03d3e0c8ac0fab5a25e2dc88f203f9c948f68889e416f",
}


def messages(question, answer, given=None):
    user = {"role": "user", "content": question}
    if given is not None:
        user["input"] = given
    return [user, {"role": "assistant", "content": answer}]


def rendered(name, talk, **variables):
    text = TEMPLATES[name].text
    return ffm.models.render(text, talk, **{"eos_token": "</s>", **variables})


def test_hashes():
    assert {name: t.sha256 for name, t in TEMPLATES.items()} == HASHES
    for template in TEMPLATES.values():
        found = hashlib.sha256(template.text.encode()).hexdigest()
        assert found == template.sha256, f"{template.name} has changed"


def test_every_template_is_used_and_every_conversation_has_one():
    used = {b.template.name for b in BENCHMARKS.values() if b.template}
    assert used == set(TEMPLATES)
    for name in list_names():
        has_messages = "messages" in BENCHMARKS[name].columns
        if has_messages:
            assert BENCHMARKS[name].template is not None, name


# What a template has to give: written out, with the line breaks of the authors' strings.
PLAIN = {
    "flowertune": f"{TASK}. {REQUEST}\n### Instruction:\nQ?\n### Response: A.",
    "openfedllm": f"{TASK}. {REQUEST}\n\n### Instruction:\nQ? \n\n### Response: A.</s>",
    "alpaca": f"{TASK}. {REQUEST}\n\n### Instruction:\nQ?\n\n### Response:A.</s>",
    "alpaca-lora": f"{TASK}. {REQUEST}\n\n### Instruction:\nQ?\n\n### Response:\nA.</s>",
    "fedkseed": f"{TASK}. {SHORT}\n\n### Instruction:\nQ?\n\n### Response:A.</s>",
    "raw": "Q?</s>A.</s>",
}
WITH_INPUT = {
    "alpaca": f"{TASK}{MORE} {REQUEST}\n\n### Instruction:\nQ?\n\n### Input:\nI\n\n### Response:A.</s>",
    "alpaca-lora": f"{TASK}{MORE} {REQUEST}\n\n### Instruction:\nQ?\n\n### Input:\nI\n\n### Response:\nA.</s>",
    "fedkseed": f"{TASK}{MORE} {SHORT}\n\n### Instruction:\nQ?\n\n### Input:\nI\n\n### Response:A.</s>",
}


@pytest.mark.parametrize("name", PLAIN)
def test_texts(name):
    assert rendered(name, messages("Q?", "A.")) == PLAIN[name]


@pytest.mark.parametrize("name", WITH_INPUT)
def test_texts_with_an_input(name):
    assert rendered(name, messages("Q?", "A.", "I")) == WITH_INPUT[name]
    assert rendered(name, messages("Q?", "A.", "")) == PLAIN[name]


def test_alpaca_lora_is_the_one_of_models():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, "<unk>"))
    chat = ffm.models.Chat(tokenizer, "", {"eos_token": "</s>"}, 1, 1)
    for talk in (messages("Q?", "A."), messages("Q?", "A.", "I")):
        expected = ffm.models.alpaca(chat).text(talk)
        assert rendered("alpaca-lora", talk) == expected


def test_vicuna():
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )
    talk = [*messages("A", "B"), *messages("C", "D")]
    expected = f"{system} USER: A ASSISTANT: B</s>USER: C ASSISTANT: D</s>"
    assert rendered("vicuna", talk) == expected


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"vicuna", "raw"}))
def test_more_turns_than_a_template_has_are_refused(name):
    talk = [*messages("A", "B"), *messages("C", "D")]
    with pytest.raises(ValueError, match="one instruction and one answer, got 4"):
        rendered(name, talk)


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level tokenizer that has whole words with their blank, as GPT-2's has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text * 3 for text in (*PLAIN.values(), " Paris is the capital. Where?\n")]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def chat_of(tokenizer, name):
    eos = tokenizer.token_to_id("</s>")
    return ffm.models.Chat(
        tokenizer, TEMPLATES[name].text, {"eos_token": "</s>"}, eos, eos
    )


ANSWERS = {
    "flowertune": " Paris is the capital.",
    "openfedllm": " Paris is the capital.</s>",
    "alpaca": "Paris is the capital.</s>",
    "alpaca-lora": "Paris is the capital.</s>",
    "fedkseed": "Paris is the capital.</s>",
    "raw": "Paris is the capital.</s>",
    "vicuna": " Paris is the capital.</s>",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_trained_is_the_answer_and_nothing_of_the_prompt(name, byte_level):
    chat = chat_of(byte_level, name)
    talk = messages("Where?", "Paris is the capital.")
    encoded = chat.encode([talk], max_length=256)
    trained = encoded["labels"][0]
    ids = [i for i in trained.tolist() if i != -100]
    assert byte_level.decode(ids, skip_special_tokens=False) == ANSWERS[name]
    # A token that joins the answer's first letter to the prompt would have shifted this.
    place = int(np.flatnonzero(trained != -100)[0])
    prompt = byte_level.decode(encoded["input_ids"][0][:place].tolist())
    assert rendered(name, talk).startswith(prompt)
    assert prompt.endswith((":", ":\n", "?"))


def test_the_answer_begins_behind_the_tag_whatever_the_tokenizer_makes_of_it(
    byte_level,
):
    """The authors look for the tag's ids without the first two, which are right for one tokenizer."""
    tag = byte_level.encode("\n### Response:").ids
    chat = chat_of(byte_level, "flowertune")
    encoded = chat.encode([messages("Where?", "Paris")], max_length=256)
    ids = encoded["input_ids"][0].tolist()
    place = int(np.flatnonzero(encoded["labels"][0] != -100)[0])
    assert byte_level.decode(ids[:place]).endswith("\n### Response:")
    # Cut by two, this tokenizer's tag is no longer the tag: nothing or less would be found.
    assert byte_level.decode(tag[2:]) != "### Response:"


def test_every_answer_of_several_turns_is_trained(byte_level):
    chat = chat_of(byte_level, "vicuna")
    talk = [*messages("Where?", "Paris"), *messages("Is it?", "It is.")]
    labels = chat.encode([talk], max_length=256)["labels"][0]
    ids = [i for i in labels.tolist() if i != -100]
    assert byte_level.decode(ids, skip_special_tokens=False) == " Paris</s> It is.</s>"


def test_planted():
    changed = TEMPLATES["flowertune"].text.replace("### Response:", "### Response: ")
    found = hashlib.sha256(changed.encode()).hexdigest()
    assert found != HASHES["flowertune"]
