"""Alpaca's templates byte for byte, and what a rendered conversation trains."""

import hashlib
from importlib.resources import files

import numpy as np
import pytest

from fedjax_fm import models
from fedjax_fm.models.alpaca import response

# SHA-1 of git's blob objects: what upstream's repository itself calls these files.
BLOBS = {
    "alpaca": "e486439c4be22b9c2b0fd6b50328c679c3623840",
    "alpaca_short": "30c6e636c5e357bd37c9d0dafc6bd6b1491e6eba",
}
ASKED = {
    "role": "user",
    "content": "Sort {these} words.",
    "input": "pear, {instruction}, apple",
}
ANSWER = {"role": "assistant", "content": "apple, {input}, pear"}


@pytest.mark.parametrize("name", BLOBS)
def test_files_are_upstreams(name):
    content = (files("fedjax_fm.models") / "templates" / f"{name}.json").read_bytes()
    assert (
        hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == BLOBS[name]
    )


@pytest.fixture(scope="module")
def chat(tiny_llama):
    return models.load_chat(tiny_llama)


def test_texts_are_stanfords_and_parse_back(chat):
    short = models.alpaca(chat, "alpaca_short")
    text = short.text([ASKED, ANSWER])
    assert text == (
        "### Instruction:\nSort {these} words.\n\n### Input:\npear, "
        "{instruction}, apple\n\n### Response:\napple, {input}, pear<|im_end|>"
    )
    assert (
        response(text.removesuffix("<|im_end|>"), "alpaca_short") == ANSWER["content"]
    )
    plain = models.alpaca(chat).text(
        [{"role": "user", "content": "Hi."}], add_generation_prompt=True
    )
    assert plain == (
        "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nHi.\n\n### "
        "Response:\n"
    )
    with pytest.raises(ValueError, match="no '### Response:'"):
        response("nothing", "alpaca")


def test_only_the_answer_and_its_end_are_trained(chat):
    short = models.alpaca(chat, "alpaca_short")
    rows = short.encode([[ASKED, ANSWER]], 200)
    counted = rows["labels"][0] != -100
    decoded = chat.tokenizer.decode(
        rows["input_ids"][0][counted].tolist(), skip_special_tokens=False
    )
    assert decoded == "apple, {input}, pear<|im_end|>"
    cut = short.encode(
        [[ASKED, ANSWER]], int(np.argmax(counted)) + 2, truncate=True
    )  # right truncation
    assert (cut["labels"][0] != -100).sum() == 2


def test_what_alpaca_cannot_say(chat):
    with pytest.raises(ValueError, match="got system as message 1"):
        models.alpaca(chat).text([{"role": "system", "content": "x"}])
    with pytest.raises(ValueError, match="got user as message 3"):
        models.alpaca(chat).text([ASKED, ANSWER, ASKED])
    with pytest.raises(ValueError, match="end token"):
        models.alpaca(chat._replace(variables={}))
