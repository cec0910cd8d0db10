"""Which tokens of a conversation are trained: transformers' assistant masks, and what
generation would see.
"""

import chat_families as families
import numpy as np
import pytest

from fedjax_fm import models

transformers = pytest.importorskip("transformers")
TAGGED = [
    family
    for family in families.FAMILIES
    if families.TAG.search(families.tagged(family))
]
LENGTH = 700
# What the template writes for an answer depends on what follows it: no single text
# holds all answers as generation would see them. (family, conversations); None: every
# conversation with an answer.
REWRITTEN = {
    "qwen3": {"three turns", "three turns, system", "ends with a question", "signs", "tools", "tools offered",
              "reasoning", "reasoning under older names", "called without tools", "roles out of order",
              "a tool's answer as a mapping", "without thinking"},
    # Mistral's system message stands in the last question alone, and not at all once it
    # is answered.
    "mistral": {"tools offered", "three turns, system", "a system's words"},
    "deepseek_r1": None,
}  # fmt: skip


def chat_of(template: str) -> models.Chat:
    return models.Chat(
        tokenizer=families.new_tokenizer(),
        template=template,
        variables=families.SPECIAL,
        eos_token_id=1,
        pad_token_id=3,
    )


def answers_of(messages) -> list[int]:
    return [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def rendered(theirs, messages, variables, prompt=False) -> str | None:
    """transformers' text; None where the template refuses, or where it prints Python's
    form of a list.
    """
    try:
        text = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, **variables
        )
    except Exception:
        return None
    return None if "[{'type': 'text'" in text or "{'content': '17" in text else text


def usable(theirs, conversation) -> bool:
    reads = families.reads(theirs.chat_template, conversation.variables)
    return (
        reads
        and bool(answers_of(conversation.messages))
        and rendered(theirs, *conversation) is not None
    )


@pytest.mark.parametrize("family", TAGGED)
def test_generation_tags_give_transformers_masks(family):
    chat, theirs = (
        chat_of(families.tagged(family)),
        families.reference(families.tagged(family)),
    )
    n = 0
    for conversation in families.CONVERSATIONS.values():
        if not usable(theirs, conversation):
            continue
        expected = theirs.apply_chat_template(
            conversation.messages,
            return_assistant_tokens_mask=True,
            return_dict=True,
            **conversation.variables,
        )
        if not any(expected["assistant_masks"]):
            continue
        rows = chat.encode([conversation.messages], LENGTH, **conversation.variables)
        size = len(expected["input_ids"])
        assert rows["input_ids"][0, :size].tolist() == expected["input_ids"]
        assert rows["attention_mask"][0].tolist() == [1] * size + [0] * (LENGTH - size)
        assert (rows["labels"][0, :size] != -100).tolist() == [
            bool(x) for x in expected["assistant_masks"]
        ]
        assert (rows["labels"][0, size:] == -100).all()
        n += 1
    assert n >= 5


@pytest.mark.compatibility
@pytest.mark.parametrize("family", families.FAMILIES)
def test_without_tags_the_cut_is_where_generation_would_begin(family, compatibility):
    """The mask of the published form is transformers' mask of the tagged one, or the
    conversation is refused.
    """
    chat = chat_of(families.untagged(family))
    theirs, plain = (
        families.reference(families.tagged(family)),
        families.reference(families.untagged(family)),
    )
    seen, compared = set(), 0
    for name, conversation in families.CONVERSATIONS.items():
        if not usable(plain, conversation):
            continue
        whole, numbers = (
            rendered(plain, *conversation),
            answers_of(conversation.messages),
        )
        # by transformers alone: every prompt and every answer is the beginning of the
        # whole
        consistent = True
        for number in numbers:
            messages, variables = conversation
            prompt = rendered(plain, messages[:number], variables, prompt=True)
            answered = rendered(plain, messages[: number + 1], variables)
            fits = (
                prompt is not None
                and answered is not None
                and answered.startswith(prompt)
            )
            if family == "phi3":  # its end of text is written once, at the end
                answered = answered.removesuffix(families.SPECIAL["eos_token"])
            consistent &= fits and whole.startswith(answered)
        if not consistent:
            seen.add(name)
            with pytest.raises(
                ValueError,
                match=r"conversation 0: .*(answers='each'|opens an answer|refuses)",
            ) as raised:
                chat.encode([conversation.messages], LENGTH, **conversation.variables)
            if len(seen) == 1:  # one row of the page for each family
                compatibility.refused(
                    "Template constructs",
                    family,
                    raised,
                    f"masks of {name!r} in one text",
                )
            continue
        labels = chat.encode([conversation.messages], LENGTH, **conversation.variables)[
            "labels"
        ][0]
        # SmolLM3's own tags hold the opening of the turn, too; without thinking, the
        # prompt holds what the tags hold.
        if family not in TAGGED or family == "smollm3" or name == "without thinking":
            continue
        mask = theirs.apply_chat_template(
            conversation.messages,
            return_assistant_tokens_mask=True,
            return_dict=True,
            **conversation.variables,
        )
        expected = np.zeros(LENGTH, bool)
        expected[: len(mask["assistant_masks"])] = mask["assistant_masks"]
        if family == "phi3":
            expected[len(mask["assistant_masks"]) - 1] = (
                numbers[-1] == len(conversation.messages) - 1
            )
        np.testing.assert_array_equal(
            labels != -100, expected, err_msg=f"{family}, {name}"
        )
        compared += 1
    if family in REWRITTEN and REWRITTEN[family] is not None:
        assert seen <= REWRITTEN[family]
        assert seen
    if compared:
        compatibility.works("Template constructs", family, "masks of answers")


@pytest.mark.compatibility
@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_answer_is_trained_as_generation_would_see_it(family, compatibility):
    """Brute force: for each answer, its prompt as transformers renders it for
    generation, and what follows.
    """
    chat, plain = (
        chat_of(families.untagged(family)),
        families.reference(families.untagged(family)),
    )
    n = 0
    for name, (messages, variables) in families.CONVERSATIONS.items():
        if not usable(plain, families.Conversation(messages, variables)):
            continue
        pairs = []
        for number in answers_of(messages):
            prompt = rendered(plain, messages[:number], variables, prompt=True)
            pairs.append((prompt, rendered(plain, messages[: number + 1], variables)))
        if any(
            prompt is None or answered is None or not answered.startswith(prompt)
            for prompt, answered in pairs
        ):
            with pytest.raises(ValueError, match="conversation 0"):
                chat.encode([messages], LENGTH, answers="each", **variables)
            continue
        rows = chat.encode([messages], LENGTH, answers="each", **variables)
        last = chat.encode([messages], LENGTH, answers="last", **variables)
        assert len(rows["labels"]) == len(pairs), name
        for row, (prompt, answered) in enumerate(pairs):
            encoding = plain(
                answered, add_special_tokens=False, return_offsets_mapping=True
            )
            ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
            expected = [
                i if start >= len(prompt) else -100
                for i, (start, _) in zip(ids, offsets, strict=True)
            ]
            assert rows["input_ids"][row, : len(ids)].tolist() == ids
            assert rows["labels"][row, : len(ids)].tolist() == expected
            assert (rows["labels"][row, len(ids) :] == -100).all()
            assert rows["attention_mask"][row].sum() == len(ids)
        for key, array in last.items():
            np.testing.assert_array_equal(array[0], rows[key][-1])
        n += 1
    if family != "deepseek_r1":
        assert n >= 3
        compatibility.works("Template constructs", family, "masks, a row an answer")


def test_each_and_last_with_the_templates_own_tags():
    chat = chat_of(families.tagged("qwen3"))
    messages = families.CONVERSATIONS["reasoning"].messages

    def text(labels):
        return chat.tokenizer.decode(
            labels[labels != -100].tolist(), skip_special_tokens=False
        )

    both = chat.encode(
        [messages], LENGTH
    )  # the template's word: one row, the first answer as it is shown there
    assert (
        text(both["labels"][0])
        == "6<|im_end|>\n<think>\n6 + 2\n</think>\n\n8<|im_end|>\n"
    )
    each = chat.encode(
        [messages, families.said("Hi", "Hello!")], LENGTH, answers="each"
    )
    assert [text(labels) for labels in each["labels"]] == [
        "<think>\n2 + 2 + 2\n</think>\n\n6<|im_end|>\n",
        "<think>\n6 + 2\n</think>\n\n8<|im_end|>\n",
        "<think>\n\n</think>\n\nHello!<|im_end|>\n",
    ]
    last = chat.encode(
        [[*messages, {"role": "user", "content": "Bye"}]], LENGTH, answers="last"
    )
    assert text(last["labels"][0]) == "<think>\n6 + 2\n</think>\n\n8<|im_end|>\n"
    assert "Bye" not in chat.tokenizer.decode(last["input_ids"][0].tolist())


def test_tags_on_the_last_turn_alone():
    """Found by where the prompt ends; by number there would be none left."""
    last = (
        "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == "
        "'assistant' %}{% generation %}"
    )
    last += "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    chat = chat_of(last + "{% if add_generation_prompt %}<assistant>{% endif %}")
    labels = chat.encode(
        [families.said("Hi", "Hello!", "Bye", "Ciao")], 60, answers="each"
    )["labels"]
    text = [chat.tokenizer.decode(row[row != -100].tolist()) for row in labels]
    assert text == ["Hello!", "Ciao"]


def test_a_rewriting_template_names_row_and_message():
    chat = chat_of(families.untagged("qwen3"))
    good, bad = (
        families.said("Hi", "Hello!"),
        families.CONVERSATIONS["three turns"].messages,
    )
    with pytest.raises(
        ValueError,
        match=r"conversation 1: the chat template writes message 1 in another way once .*",
    ):
        chat.encode([good, bad], LENGTH)
    with pytest.raises(ValueError, match=r"opens an answer with .*<think>"):
        chat_of(families.untagged("deepseek_r1")).encode([good], LENGTH)
    with pytest.raises(
        ValueError,
        match=r"expected answers to be one of 'all', 'last', 'each', got answers='first'",
    ):
        chat.encode([good], LENGTH, answers="first")


def test_a_sign_of_several_tokens_at_the_end_is_trained_whole():
    """transformers' mask ends at the first of them."""
    chat = chat_of(
        "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% "
        "endgeneration %}{% endfor %}"
    )
    chat = chat._replace(
        template=chat.template.replace(
            "{% generation %}{{ m.content }}{% endgeneration %}", ANSWERS
        )
    )
    labels = chat.encode([families.said("Hi", "A🙂")], 60)["labels"][0]
    assert chat.tokenizer.decode(labels[labels != -100].tolist()) == "A🙂"


ANSWERS = (
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration "
    "%}{% else %}{{ m.content }}{% endif %}"
)


def test_tags_inside_captured_text_are_found_and_altered_ones_are_refused():
    captured = (
        "{% for m in messages %}{% set turn %}"
        + ANSWERS
        + "{% endset %}{{ m.role ~ ':' ~ turn }}{% endfor %}"
    )
    segments = chat_of(captured).segments(families.said("Hi", "Hello!", "Bye", "Ciao"))
    assert [(s.text, s.response) for s in segments] == [
        ("user:Hiassistant:", False),
        ("Hello!", True),
        ("user:Byeassistant:", False),
        ("Ciao", True),
    ]
    cut = captured.replace("~ turn", "~ (turn | length)")
    with pytest.raises(ValueError, match="alters what is inside"):
        chat_of(cut).segments(families.said("Hi", "Hello!"))


def test_truncation_and_packing_of_each_answer():
    chat = chat_of(families.untagged("qwen3"))
    conversations = [
        families.CONVERSATIONS[name].messages for name in ("three turns", "reasoning")
    ]
    rows = chat.encode(conversations, 200, answers="each")
    assert len(rows["labels"]) == 5
    packed = models.pack(rows, 200)
    assert (packed["labels"] != -100).sum() == (rows["labels"] != -100).sum()
    with pytest.raises(
        ValueError,
        match=r"conversation 0, message 5 has \d+ tokens, more than max_length=60",
    ):
        chat.encode(conversations, 60, answers="each")
