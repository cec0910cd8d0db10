"""Chat templates against transformers, what they may not do, and which tokens are the
assistant's.
"""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models

from fedjax_fm import models
from fedjax_fm.models.weights import WeightError

CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "Hi\n\n  there <b>&amp;</b> "},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Count to 3."},
        {"role": "assistant", "content": "1, 2, 3. 🙂"},
    ],
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "Largest planet?"},
        {"role": "assistant", "content": "Jupiter"},
        {"role": "user", "content": "Smallest?"},
    ],
]
BLOCKS = """
{%- for message in messages %}
    {% if message.role not in ['user', 'assistant'] %}
        {{ raise_exception('unknown role ' + message.role) }}
    {% elif message.role == 'user' and loop.first %}
    {{ bos_token }}[INST] {{ message['content'] | trim }} [/INST]
    {% else %}
        {%- if message.content == 'stop' %}{% break %}{% endif -%}
    {{ message.content }}{{ eos_token }} {{ {'a': '<é>'} | tojson }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
assistant:
{%- endif %}
"""


@pytest.mark.parametrize("prompt", [False, True])
def test_smollm2_renders_as_transformers_does(
    smollm2_chat, smollm2_reference_tokenizer, prompt
):
    for messages in CONVERSATIONS:
        text = smollm2_chat.text(messages, add_generation_prompt=prompt)
        theirs = smollm2_reference_tokenizer.apply_chat_template
        assert text == theirs(messages, tokenize=False, add_generation_prompt=prompt)
        if prompt:
            ids = theirs(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
            assert smollm2_chat.prompt_ids(messages) == ids
    assert "named SmolLM" in smollm2_chat.text(CONVERSATIONS[0])
    assert "named SmolLM" not in smollm2_chat.text(CONVERSATIONS[2])


def test_blocks_breaks_and_filters_render_as_in_transformers():
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    stopped = [*CONVERSATIONS[1][:3], {"role": "assistant", "content": "stop"}]
    for messages in (*CONVERSATIONS[:2], stopped):
        for prompt in (False, True):
            expected = render_jinja_template(
                [messages],
                chat_template=BLOCKS,
                add_generation_prompt=prompt,
                **variables,
            )[0][0]
            assert (
                models.render(
                    BLOCKS, messages, add_generation_prompt=prompt, **variables
                )
                == expected
            )


def test_what_a_template_refuses_or_may_not_do():
    messages = CONVERSATIONS[0]
    with pytest.raises(ValueError, match="refuses these messages: unknown role system"):
        models.render(BLOCKS, CONVERSATIONS[2], bos_token="", eos_token="")
    with pytest.raises(ValueError, match="not valid Jinja"):
        models.render("{% for m in messages %}", messages)
    with pytest.raises(ValueError, match="at least one message, got none"):
        models.render("{{ 1 }}", [])
    for attack in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ):
        with pytest.raises(
            ValueError, match=r"refuses.*unsafe|refuses.*not safely callable"
        ):
            models.render(attack, messages)


def test_segments_add_up_and_answers_are_found(smollm2_chat):
    for messages in CONVERSATIONS:
        segments = smollm2_chat.segments(messages)
        assert "".join(segment.text for segment in segments) == smollm2_chat.text(
            messages
        )
        answers = [
            message["content"] for message in messages if message["role"] == "assistant"
        ]
        spoken = [segment.text for segment in segments if segment.response]
        assert spoken == [f"{answer}<|im_end|>\n" for answer in answers]


def test_labels_are_the_assistants_tokens(smollm2_chat, smollm2_reference_tokenizer):
    conversations = CONVERSATIONS[1:]
    batch = smollm2_chat.encode(conversations, max_length=96)
    assert all(
        array.shape == (2, 96) and array.dtype == np.int32 for array in batch.values()
    )
    for row, messages in enumerate(conversations):
        n = batch["attention_mask"][row].sum()
        ids = smollm2_reference_tokenizer.apply_chat_template(
            messages, return_dict=False
        )
        assert batch["input_ids"][row, :n].tolist() == ids
        assert (batch["attention_mask"][row, n:] == 0).all()
        assert (batch["input_ids"][row, n:] == 2).all()
        labels = batch["labels"][row]
        spoken = labels != -100
        np.testing.assert_array_equal(labels[spoken], batch["input_ids"][row][spoken])
        text = smollm2_chat.tokenizer.decode(
            labels[spoken].tolist(), skip_special_tokens=False
        )
        answers = [
            message["content"] for message in messages if message["role"] == "assistant"
        ]
        assert text == "".join(f"{answer}<|im_end|>\n" for answer in answers)


def test_conversations_that_do_not_fit(smollm2_chat):
    with pytest.raises(
        ValueError, match=r"conversation 1 has \d+ tokens, more than max_length=70"
    ):
        smollm2_chat.encode(CONVERSATIONS[2:0:-1], max_length=70)
    cut = smollm2_chat.encode(CONVERSATIONS[1:2], max_length=60, truncate=True)
    whole = smollm2_chat.encode(CONVERSATIONS[1:2], max_length=96)
    for name, array in cut.items():
        np.testing.assert_array_equal(array, whole[name][:, :60])
    with pytest.raises(ValueError, match="no answer within its first 20 tokens"):
        smollm2_chat.encode(CONVERSATIONS[1:2], max_length=20, truncate=True)
    with pytest.raises(ValueError, match="no answer within its first 96 tokens"):
        smollm2_chat.encode(CONVERSATIONS[:1], max_length=96)
    with pytest.raises(ValueError, match="the first message is the assistant's"):
        smollm2_chat.segments(CONVERSATIONS[1][1:])


def small_tokenizer() -> Tokenizer:
    words = ["[end]", "[pad]", *"abcdefgh: "]
    tokenizer = Tokenizer(
        token_models.BPE({word: i for i, word in enumerate(words)}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.add_special_tokens(["[end]", "[pad]"])
    return tokenizer


def test_a_template_that_rewrites_earlier_turns_is_refused():
    only_last = "{{ messages[-1].content }}{% if add_generation_prompt %}:{% endif %}"
    chat = models.Chat(
        tokenizer=small_tokenizer(),
        template=only_last,
        variables={},
        eos_token_id=0,
        pad_token_id=1,
    )
    with pytest.raises(ValueError, match="rewrites what comes before message 1"):
        chat.segments(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )


def test_a_folder_of_hugging_face_is_read(tmp_path):
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    settings = tmp_path / "tokenizer_config.json"
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer_config\.json"):
        models.load_chat(tmp_path)
    settings.write_text("{")
    with pytest.raises(WeightError, match="is not JSON"):
        models.load_chat(tmp_path)
    fields = {"eos_token": {"content": "[end]"}, "pad_token": "[pad]"}
    settings.write_text(json.dumps(fields))
    with pytest.raises(WeightError, match="has no chat template; it is a base model"):
        models.load_chat(tmp_path)
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    named = [
        {"name": "tool_use", "template": "x"},
        {"name": "default", "template": template},
    ]
    for value in (template, named):
        settings.write_text(json.dumps({**fields, "chat_template": value}))
        chat = models.load_chat(tmp_path)
        assert (chat.eos_token_id, chat.pad_token_id) == (0, 1)
        assert chat.text([{"role": "user", "content": "abc"}]) == "abc[end]"
    (tmp_path / "chat_template.jinja").write_text(
        "{{ messages[0].content }}"
    )  # the newer place wins
    assert models.load_chat(tmp_path).prompt_ids(
        [{"role": "user", "content": "ab"}]
    ) == [2, 3]
    settings.write_text("{}")
    with pytest.raises(WeightError, match="neither a padding nor an end token"):
        models.load_chat(tmp_path)
