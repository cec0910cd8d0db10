"""Chat templates with the constructs of current model families, conversations for them,
and transformers as oracle.

The files in chat_templates/ are written for these tests. They hold `{% generation %}`
tags around what the assistant writes, so that transformers says which tokens are its;
`untagged` is the form in which such templates are published."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import models as token_models

FOLDER = Path(__file__).parent / "chat_templates"
SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
TAG = re.compile(
    r"\{%-?\s*(end)?generation\s*-?%\}\n?"
)  # with the line break that trim_blocks would take


class Conversation(NamedTuple):
    """Messages, and what else the template is given."""

    messages: list[dict[str, Any]]
    variables: Mapping[str, Any] = MappingProxyType({})


def said(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
    ]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now> & later, in °C",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln <1>"}},
}
CALLED = [
    {"role": "user", "content": "Weather in Köln?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {
        "role": "tool",
        "content": "17 & rain",
        "name": "weather",
        "tool_call_id": "abcdefghi",
    },
    {"role": "assistant", "content": "It rains."},
]
DOCUMENTS = [
    {"title": "One", "text": "First <text>."},
    {"title": "Two", "text": "Second."},
]
CONVERSATIONS = {
    "one turn": Conversation(said("What is 1 + 1?", "It is 2.")),
    "a question": Conversation(said("What is the capital of France?")),
    "a system's words": Conversation(
        said("Largest planet?", "Jupiter", system="Answer in a word.")
    ),
    "three turns": Conversation(
        said("Hi", "Hello!", "Count to 3.", "1, 2, 3.", "Thanks", "Not at all.")
    ),
    "three turns, system": Conversation(
        said("Hi", "Hello!", "Well?", "Well.", "Bye", "Bye!", system="Be brief.")
    ),
    "ends with a question": Conversation(said("Hi", "Hello!", "And now?")),
    "signs": Conversation(
        said(
            "Hi\n\n  <b>&amp;</b> ",
            "Grüße 🙂 \"quoted\" 'x' {{ y }} {% z %}\n- a\n",
            "日本",
            "東京",
        )
    ),
    "roles out of order": Conversation(said("a", "b") + said("c", "d")[1:]),
    "tools": Conversation(CALLED, {"tools": [WEATHER]}),
    "tools offered": Conversation(
        said("Hi", "Hello!", "Again", "Yes?"), {"tools": [WEATHER, WEATHER]}
    ),
    "an empty list of tools": Conversation(said("Hi", "Hello!"), {"tools": []}),
    "called without tools": Conversation(CALLED),
    "a tool's answer as a mapping": Conversation(
        [
            *CALLED[:2],
            {**CALLED[2], "content": {"content": "17 °C", "unit": None}},
            CALLED[3],
        ],
        {"tools": [WEATHER]},
    ),
    "documents": Conversation(said("Who?", "One."), {"documents": DOCUMENTS}),
    "reasoning": Conversation(
        [
            {"role": "user", "content": "2 * 3?"},
            {"role": "assistant", "content": "6", "reasoning_content": "2 + 2 + 2"},
            {"role": "user", "content": "And 2 * 4?"},
            {"role": "assistant", "content": "8", "reasoning_content": "6 + 2"},
        ]
    ),
    "reasoning under older names": Conversation(
        [
            {"role": "user", "content": "2 * 3?"},
            {"role": "assistant", "content": "6", "thinking": "2 + 2 + 2"},
            {"role": "user", "content": "And 2 * 4?"},
            {"role": "assistant", "content": "8", "reasoning": "6 + 2"},
        ]
    ),
    "reasoning in the text": Conversation(
        said("2 * 3?", "<think>\n2 + 2 + 2\n</think>\n\n6")
    ),
    "without thinking": Conversation(said("2 * 3?", "6"), {"enable_thinking": False}),
    "a date": Conversation(
        said("Which day?", "Monday."), {"date_string": "01 Feb 2025"}
    ),
    "fields that are None": Conversation(
        [
            {"role": "user", "content": "Hi", "tool_calls": None},
            {"role": "assistant", "content": "Hello!", "name": None},
        ]
    ),
    "parts": Conversation(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look: "},
                    {"type": "text", "text": "what?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ]
    ),
}
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.jinja"))


def tagged(family: str) -> str:
    """The template with its `{% generation %}` tags, where it has them."""
    return (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")


def untagged(family: str) -> str:
    """The same template without them."""
    return TAG.sub("", tagged(family))


@functools.cache
def special_words() -> tuple[str, ...]:
    """Every control word of the templates."""
    found = {
        word
        for family in FAMILIES
        for word in re.findall(r"<[|｜][^<>\s']+?[|｜]>|\[/?[A-Z_]+\]", tagged(family))
    }
    return (*SPECIAL.values(), *sorted(found), "<start_of_turn>", "<end_of_turn>")


def new_tokenizer() -> Tokenizer:
    """A byte-level BPE that knows the control words of all families."""
    return Tokenizer.from_str(_trained())


@functools.cache
def _trained() -> str:
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([tagged(family) for family in FAMILIES], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word in special_words()]
    )
    return tokenizer.to_str()


def reference(template: str) -> Any:
    """transformers' tokenizer with that template."""
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=new_tokenizer(), chat_template=template, **SPECIAL
    )


def reads(template: str, variables: Mapping[str, Any]) -> bool:
    """Whether the words of the variables stand in the template."""
    return all(re.search(rf"\b{name}\b", template) for name in variables)
