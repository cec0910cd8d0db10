"""Rendered conversations against transformers, on templates with the constructs of
current families.
"""

import importlib
from datetime import datetime

import chat_families as families
import pytest

from fedjax_fm import models

transformers = pytest.importorskip("transformers")
CASES = [
    (family, name)
    for family in families.FAMILIES
    for name, conversation in families.CONVERSATIONS.items()
    if families.reads(families.tagged(family), conversation.variables)
]


@pytest.fixture(scope="module")
def both():
    """(template) -> (our chat, transformers' tokenizer)."""
    made = {}

    def make(template):
        if template not in made:
            chat = models.Chat(
                tokenizer=families.new_tokenizer(),
                template=template,
                variables=families.SPECIAL,
                eos_token_id=1,
                pad_token_id=3,
            )
            made[template] = chat, families.reference(template)
        return made[template]

    return make


def outcome(function, *args, **options):
    """("text", what it gives) or ("refused", its words)."""
    try:
        return "text", function(*args, **options)
    except Exception as error:
        return "refused", error


def prints_a_list(text: str) -> bool:
    """Whether Python's form of a list of parts went into the text, which transformers lets pass."""
    return "[{'type': 'text'" in text or "{'content': '17" in text


@pytest.mark.compatibility
@pytest.mark.parametrize(("family", "name"), CASES)
def test_renders_as_apply_chat_template(both, family, name, compatibility):
    conversation = families.CONVERSATIONS[name]
    for template in {families.tagged(family), families.untagged(family)}:
        chat, theirs = both(template)
        for prompt in (False, True):
            options = {"add_generation_prompt": prompt, **conversation.variables}
            expected = outcome(
                theirs.apply_chat_template,
                conversation.messages,
                tokenize=False,
                **options,
            )
            found = outcome(chat.text, conversation.messages, **options)
            if expected[0] == "refused" or prints_a_list(expected[1]):
                assert found[0] == "refused", found[1]
                assert isinstance(found[1], ValueError)
                continue
            assert found == expected
            if prompt:
                ids = theirs.apply_chat_template(
                    conversation.messages, return_dict=False, **options
                )
                assert (
                    chat.prompt_ids(conversation.messages, **conversation.variables)
                    == ids
                )
    if expected[0] == "text" and found[0] == "refused":
        compatibility.refused("Template constructs", family, found[1], name)
    elif expected[0] == "text":
        compatibility.works("Template constructs", family, "texts")


CONSTRUCTS = {
    "tools is none": "{% if tools is none %}none{% elif tools is defined %}defined{% else "
    "%}undefined{% endif %}",
    "documents is none": "{{ 'none' if documents is none else 'else' }}",
    "tojson(false)": "{{ {'é': ['<&>', 1.5, none, true]} | tojson(false) }}",
    "tojson(ensure_ascii=true)": "{{ {'é': '日'} | tojson(ensure_ascii=true) }}",
    "tojson(indent=2)": "{{ {'b': [1, {}], 'a': '\"'} | tojson(indent=2) }}",
    "tojson(separators, sort_keys)": "{{ {'b': [1, 2], 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}",
    "tojson(false, 1, none, true)": "{{ {'b': 'é', 'a': [2]} | tojson(false, 1, none, true) }}",
    "tojson of messages": "{{ messages | tojson }}",
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ "
    "sep_token is defined }}",
    "break and continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif "
    "%}{{ m.content }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}",
    "trim_blocks, lstrip_blocks": "a\n   {% if true %}\n b\n   {% endif %}\n   {# c #}\n d {{ 1 }}\n",
    "a trailing line break": "{{ messages[0].content }}\n\n",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 "
    "%}{% endfor %}{{ ns.n }}",
    "dict": "{{ dict(a=1, **{'b': 2}) | tojson }}{{ dict.fromkeys([1]) | tojson }}",
    "macro": "{% macro m(x, y='<&>') %}{{ x ~ y }}{% endmacro %}{{ m(messages[0].content) }}",
    "call block": "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}{{ "
    "messages[0].content }}{% endcall %}",
    "strftime_now": "{{ strftime_now('%d %b %Y') }}",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | "
    "map(attribute='content') | join('; ') | upper }}",
    "slices": "{{ messages[::-1] | map(attribute='role') | join(' ') }}{{ messages[1:] | length }}",
    "strings": "{{ messages[0].content.strip().split(' ')[0].replace('H', 'J') }}",
    "a missing key": "{{ messages[0].name }}{{ messages[0]['name'] }}{{ 'name' in messages[0] }}",
    "a None key": "{{ 'tool_calls' in messages[1] }}{{ messages[1].tool_calls is defined }}",
    "raise_exception": "{{ raise_exception('no') }}",
    "undefined attribute": "{{ messages[0].a.b }}",
    "unknown variable printed": "{{ nonesuch }}{{ nonesuch is defined }}",
    "unknown filter": "{{ 1 | nonesuch }}",
    "bad syntax": "{% for %}",
    "text and a list": "{{ 'a' + messages }}",
    "division by zero": "{{ 1 / 0 }}",
    "a mutated message": "{{ messages[0].update({'role': 'x'}) }}",
    "attributes of classes": "{{ ''.__class__.__mro__ }}",
    "attributes of functions": "{{ raise_exception.__globals__ }}",
    "a namespace with an underscore": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns._x }}",
    "a long range": "{{ range(10000000) | length }}",
    "generation": "{% generation %}{{ messages[1].content }}{% endgeneration %}",
    "generation with set": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ "
    "x }}",
    "generation, unclosed": "{% generation %}{{ 1 }}",
}


@pytest.mark.compatibility
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_constructs(both, name, compatibility):
    chat, theirs = both(CONSTRUCTS[name])
    messages = families.said(" Hi you <&> ", "Hé", "Bye", system="Sys")
    messages[1]["tool_calls"] = None
    for prompt in (False, True):
        expected = outcome(
            theirs.apply_chat_template,
            messages,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        found = outcome(chat.text, messages, add_generation_prompt=prompt)
        if expected[0] == "text":
            assert found == expected
        else:
            assert found[0] == "refused"
            assert isinstance(found[1], ValueError)
            assert "chat template" in str(found[1])
    if found[0] == "text":
        compatibility.works("Template constructs", f"`{name}`")
    else:
        compatibility.refused("Template constructs", f"`{name}`", found[1])


def test_dates_are_those_of_the_day(both, monkeypatch):
    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 12, 24, 18, 5)

    for name in (
        "fedjax_fm.models.chat_template",
        "transformers.utils.chat_template_utils",
    ):
        monkeypatch.setattr(importlib.import_module(name), "datetime", Frozen)
    for family in ("llama3", "granite", "smollm3", "gpt_oss"):
        chat, theirs = both(families.tagged(family))
        messages = families.said("Hi", "Hello!")
        assert chat.text(messages) == theirs.apply_chat_template(
            messages, tokenize=False
        )
        assert "2031" in chat.text(messages)


def test_a_variable_that_the_template_does_not_read_is_refused(both):
    messages = families.said("Hi", "Hello!")
    chat, _ = both(families.tagged("qwen3"))
    assert chat.text(messages, enable_thinking=False) == chat.text(messages)
    for name, value in (
        ("enable_thinkng", False),
        ("documents", families.DOCUMENTS),
        ("continue_final_message", True),
    ):
        with pytest.raises(
            ValueError, match=rf"does not read {name!r}.*'enable_thinking'"
        ):
            chat.text(messages, **{name: value})
    assert chat.text(messages, documents=None) == chat.text(messages)
    with pytest.raises(ValueError, match="does not read 'tools'"):
        both(families.tagged("zephyr"))[0].prompt_ids(
            messages, tools=[families.WEATHER]
        )


@pytest.mark.parametrize(
    "tools",
    [{"name": "weather"}, "weather", [len], [lambda city: city], ["weather"], 3],
)
def test_tools_are_descriptions(both, tools):
    chat, _ = both(families.tagged("qwen25"))
    with pytest.raises(TypeError, match="expected tools as a list of JSON schemas"):
        chat.text(families.said("Hi"), tools=tools)
    chat, _ = both(families.tagged("granite"))
    with pytest.raises(TypeError, match="expected documents as a list of"):
        chat.text(families.said("Hi"), documents=tools)
