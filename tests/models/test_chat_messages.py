"""What people hand in place of conversations: taken where there is one meaning, else
refused by row and message.
"""

import chat_families as families
import numpy as np
import pytest

from fedjax_fm import models

ASKED, ANSWERED = families.said("Hi", "Hello!")


@pytest.fixture(scope="module")
def chat():
    return models.Chat(
        tokenizer=families.new_tokenizer(),
        template=families.untagged("chatml"),
        variables=families.SPECIAL,
        eos_token_id=1,
        pad_token_id=3,
    )


BAD_MESSAGES = {
    "bytes": ({"role": "user", "content": b"Hi"}, r"content of type bytes"),
    "None": ({"role": "user", "content": None}, r"has no content"),
    "no content": ({"role": "assistant"}, r"has no content"),
    "None and no calls": (
        {"role": "assistant", "content": None, "tool_calls": []},
        r"has no content",
    ),
    "NaN": ({"role": "user", "content": float("nan")}, r"content of type float"),
    "a number": ({"role": "user", "content": 3}, r"content of type int"),
    "an array": (
        {"role": "user", "content": np.array(["Hi"])},
        r"content of type ndarray",
    ),
    "a lone surrogate": (
        {"role": "user", "content": "a \ud83d b"},
        r"lone surrogate '\\ud83d' at position 2",
    ),
    "a surrogate in a part": (
        {"role": "user", "content": [{"type": "text", "text": "\udc00"}]},
        r"lone surrogate '\\udc00'",
    ),
    "a part without text": (
        {"role": "user", "content": [{"type": "text", "text": None}]},
        r"part 0.*text.*None",
    ),
    "a part of bytes": ({"role": "user", "content": ["a", b"b"]}, r"part 1.*bytes"),
    "parts where text is read": (
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        r"list of parts",
    ),
    "a mapping where text is read": (
        {"role": "tool", "content": {"a": 1}},
        r"content of type dict",
    ),
    "no role": ({"content": "Hi"}, r"has no role; its keys are \['content'\]"),
    "a role that is no text": ({"role": 1, "content": "Hi"}, r"role=1"),
    "Alpaca's keys": (
        {"instruction": "Hi", "input": "", "output": "Ho"},
        r"keys are \['input', 'instruction', 'output'\]",
    ),
    "text": ("Hi", r"is a str"),
    "bytes in a call": (
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": b"{}"}}],
        },
        r"tool_calls.*bytes",
    ),
    "an object": ({"role": "user", "content": "Hi", "name": object()}, r"name.*object"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_bad_messages_are_named(chat, case):
    message, words = BAD_MESSAGES[case]
    messages = [ASKED, message, ASKED, ANSWERED]
    with pytest.raises(
        (ValueError, TypeError),
        match=rf"(?s)conversation 1: .*message 1.*{words}|message 1.*{words}",
    ) as raised:
        chat.encode([[ASKED, ANSWERED], messages], 100)
    assert "conversation 1" in str(raised.value)
    with pytest.raises((ValueError, TypeError), match=rf"(?s)message 1.*{words}"):
        chat.text(messages)
    with pytest.raises((ValueError, TypeError), match=rf"(?s)message 1.*{words}"):
        models.render(chat.template, messages)


@pytest.mark.parametrize(
    "bad", ["Hi", b"Hi", None, 3, {"messages": [ASKED]}, np.float64("nan")]
)
def test_what_is_no_conversation(chat, bad):
    with pytest.raises(
        TypeError, match=r"conversation 1: expected a list of messages, got "
    ):
        chat.encode([[ASKED, ANSWERED], bad], 100)
    with pytest.raises(TypeError, match="expected a list of messages, got "):
        chat.prompt_ids(bad)
    if isinstance(bad, dict):
        with pytest.raises(TypeError, match=r"write row\['messages'\]"):
            chat.text(bad)


def test_one_conversation_is_not_a_list_of_them(chat):
    with pytest.raises(
        TypeError,
        match=r"expected a list of conversations, got one conversation.*write \[messages\]",
    ):
        chat.encode([ASKED, ANSWERED], 100)
    with pytest.raises(TypeError, match="expected a list of conversations, got a str"):
        chat.encode("Hi", 100)
    with pytest.raises(
        TypeError, match=r"expected one conversation.*got a list of conversations"
    ):
        chat.text([[ASKED, ANSWERED]])
    with pytest.raises(
        ValueError, match="conversation 1: expected at least one message"
    ):
        chat.encode([[ASKED, ANSWERED], []], 100)
    assert chat.encode([], 100)["labels"].shape == (0, 100)


@pytest.mark.parametrize("name", ["max_length"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "8", None])
def test_lengths(chat, name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name}={value!r}"):
        chat.encode([[ASKED, ANSWERED]], value)


def test_truncate_is_a_flag(chat):
    with pytest.raises(TypeError, match="truncate=1"):
        chat.encode([[ASKED, ANSWERED]], 100, truncate=1)


def test_sharegpt(chat):
    theirs = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello!"},
    ]
    ours = families.said("Hi", "Hello!", system="Be brief.")
    assert chat.text(theirs) == chat.text(ours)
    for key, array in chat.encode([theirs], 100).items():
        np.testing.assert_array_equal(array, chat.encode([ours], 100)[key])
    with pytest.raises(
        ValueError,
        match=r"conversation 0: message 1.*'from': 'bing'.*'human', 'gpt' and 'system'",
    ):
        chat.encode([[theirs[0], {"from": "bing", "value": "Hi"}]], 100)
    with pytest.raises(ValueError, match=r"message 0 has no role"):
        chat.text([{"from": "human", "text": "Hi"}])


def test_tuples_arrays_and_texts_of_numpy_are_taken(chat):
    messages = [{"role": np.str_("user"), "content": np.str_("Hi")}, dict(ANSWERED)]
    expected = chat.encode([[ASKED, ANSWERED]], 60)
    column = np.empty(1, object)
    column[0] = np.array(messages, object)
    for conversations in ([tuple(messages)], (messages,), column):
        for key, array in chat.encode(conversations, 60).items():
            np.testing.assert_array_equal(array, expected[key])


def test_parts_and_mappings_go_where_a_template_reads_them():
    gemma = models.Chat(
        tokenizer=families.new_tokenizer(),
        template=families.untagged("gemma3"),
        variables=families.SPECIAL,
        eos_token_id=1,
        pad_token_id=3,
    )
    parts = families.CONVERSATIONS["parts"].messages
    assert gemma.text(parts).count("Look:what?") == 1
    assert (gemma.encode([parts], 200)["labels"] != -100).any()


def test_a_transformers_tokenizer_is_taken(chat):
    transformers = pytest.importorskip("transformers")
    for family in ("chatml", "llama3"):
        theirs = families.reference(families.untagged(family))
        ours = models.load_chat(theirs)
        eos, pad = (ours.tokenizer.token_to_id(word) for word in ("</s>", "<pad>"))
        assert (ours.eos_token_id, ours.pad_token_id, ours.eos_token_ids) == (
            eos,
            pad,
            (eos,),
        )
        assert dict(ours.variables) == families.SPECIAL
        messages = [ASKED, ANSWERED]
        assert ours.text(messages) == theirs.apply_chat_template(
            messages, tokenize=False
        )
    theirs = families.reference(families.untagged("chatml"))
    given = chat._replace(tokenizer=theirs)
    for key, array in given.encode([[ASKED, ANSWERED]], 60).items():
        np.testing.assert_array_equal(array, chat.encode([[ASKED, ANSWERED]], 60)[key])
    theirs.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        models.load_chat(theirs)
    nameless = transformers.PreTrainedTokenizerFast(
        tokenizer_object=families.new_tokenizer(), chat_template="x"
    )
    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        models.load_chat(nameless)


def test_a_chat_without_a_tokenizer(chat):
    with pytest.raises(
        TypeError,
        match=r"expected a tokenizer of `tokenizers`.*got a str.*load_tokenizer",
    ):
        chat._replace(tokenizer="gpt2").prompt_ids([ASKED])


def test_named_templates():
    named = {
        "default": "{{ messages[0].content }}",
        "tool_use": "{{ tools | length }}",
        "rag": "r",
    }
    chat = models.Chat(
        tokenizer=families.new_tokenizer(),
        template=named["default"],
        variables={},
        eos_token_id=1,
        pad_token_id=3,
        named=named,
    )
    theirs = None
    try:
        theirs = families.reference(named)
    except ImportError:
        pytest.skip("transformers is not installed")
    for tools in (None, [families.WEATHER]):
        expected = theirs.apply_chat_template([ASKED], tokenize=False, tools=tools)
        assert chat.text([ASKED], tools=tools) == expected
    assert chat.use("rag").text([ASKED]) == theirs.apply_chat_template(
        [ASKED], tokenize=False, chat_template="rag"
    )
    with pytest.raises(
        ValueError,
        match=r"expected name to be one of 'default', 'tool_use', 'rag', got name='x'",
    ):
        chat.use("x")
