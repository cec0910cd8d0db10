"""Conversations made plain for a template, or refused by message.

A template may see text, numbers, lists and mappings, as in transformers: it is
untrusted code, and objects have methods.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from fedjax_fm import checks

# {"role": "system" | "user" | "assistant" | "tool", "content": text}
Message = Mapping[str, Any]

# One thing under three names: templates read the first, gpt-oss's the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system"}


class Parts(list):
    """Content in parts.

    A template that writes it as text would write Python's form of it, brackets and all.
    Here that is a TypeError.
    """

    def __str__(self) -> str:
        _is_no_text(self)

    __repr__ = __str__

    def __format__(self, form: str) -> str:
        _is_no_text(self)


class Fields(dict):
    """Content that is a mapping, such as a tool's result; see `Parts`."""

    def __str__(self) -> str:
        _is_no_text(self)

    __repr__ = __str__

    def __format__(self, form: str) -> str:
        _is_no_text(self)


def _is_no_text(content: Any) -> NoReturn:
    """The TypeError of content that a template wanted as text."""
    raise TypeError(f"expected content that is text, got {kind(content)}")


def kind(content: Any) -> str:
    """The kind of a message's content in words, for error messages.

    Args:
      content: of a message.

    Example:
      >>> kind(["a"]), kind(3)
      ('a list of parts', 'content of type int')
    """
    if isinstance(content, list):
        return "a list of parts"
    name = "dict" if isinstance(content, Fields) else type(content).__name__
    return f"content of type {name}"


def is_message(value: Any) -> bool:
    """Whether a value is one message, good or bad, and no conversation.

    Args:
      value: anything.

    Example:
      >>> is_message({"role": "user", "content": "Hi"})
      True
    """
    return isinstance(value, Mapping) and "messages" not in value


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as a template gets them, as in transformers.

    Fields that are None are dropped, and reasoning is there under each of its names.
    ShareGPT's {"from": "human" | "gpt" | "system", "value": text} is taken for
    {"role", "content"}.

    Args:
      messages: one conversation, in order.

    Raises:
      TypeError, ValueError: no list of messages; a message without a role, without
        content (unless it has something else, such as tool_calls) or with what is no
        text; names the message by its number.

    Example:
      >>> plain_messages([{"from": "human", "value": "Hi"}])
      [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(messages, Mapping) and "messages" in messages:
        raise TypeError(
            "expected a list of messages, got a row of a table; write row['messages']"
        )
    if isinstance(messages, np.ndarray) and messages.ndim == 1:
        messages = list(messages)
    if not isinstance(messages, (list, tuple)):
        raise TypeError(
            f"expected a list of messages, got {_short(messages)} of type "
            f"{type(messages).__name__}"
        )
    if not messages:
        raise ValueError("expected at least one message, got none")
    if isinstance(messages[0], (list, tuple)):
        raise TypeError(
            "expected one conversation (a list of messages), got a list of "
            "conversations"
        )
    return [
        _message(f"message {number}", message)
        for number, message in enumerate(messages)
    ]


def _message(name: str, message: Any) -> dict[str, Any]:
    """One message, made plain; `name` begins its errors."""
    if not isinstance(message, Mapping):
        raise TypeError(
            f"{name} is a {type(message).__name__}; expected a mapping with role and "
            "content"
        )
    if "from" in message and "value" in message and "role" not in message:
        message = _of_sharegpt(name, message)
    given = {key: value for key, value in message.items() if value is not None}
    if "role" not in given:
        keys = sorted(map(str, message))
        raise ValueError(
            f"{name} has no role; its keys are {keys}. Write "
            f'{{"role": "user", "content": text}}'
        )
    if not isinstance(given["role"], str):
        raise TypeError(
            f"{name}: expected a role that is text, got role={given['role']!r}"
        )
    if "content" in given:
        given["content"] = _content(name, given["content"])
    elif not any(given[key] for key in given if key != "role"):
        raise ValueError(
            f"{name} ({given['role']}) has no content; expected text, or tool_calls in "
            "its place"
        )
    fields = {
        str(key): value if key == "content" else plain(f"{name}: {key}", value)
        for key, value in given.items()
    }
    reasoning = next((fields[key] for key in _REASONING if key in fields), None)
    return (
        fields
        if reasoning is None
        else {"thinking": reasoning, **fields, "reasoning_content": reasoning}
    )


def _of_sharegpt(name: str, message: Message) -> dict[str, Any]:
    """A message of ShareGPT's format with role and content."""
    role = _SHAREGPT.get(message["from"]) if isinstance(message["from"], str) else None
    if role is None:
        raise ValueError(
            f"{name} has 'from': {message['from']!r}; of ShareGPT's format, "
            "'human', 'gpt' and 'system' are known. Write role and content for "
            "others"
        )
    others = {
        key: value for key, value in message.items() if key not in ("from", "value")
    }
    return {**others, "role": role, "content": message["value"]}


def _content(name: str, content: Any) -> Any:
    """The content of a message: text, `Parts` or `Fields`."""
    if isinstance(content, str):
        return str.__str__(checks.text(name, content))
    if isinstance(content, Mapping):
        return Fields(plain(f"{name}: content", content))
    if not isinstance(content, (list, tuple)):
        raise TypeError(
            f"{name} has {kind(content)}, {_short(content)}; expected text or a list "
            "of parts"
        )
    for number, part in enumerate(content):
        if isinstance(part, Mapping) and part.get("type") == "text":
            checks.text(f"{name}, part {number} (text)", part.get("text"))
    return Parts(
        plain(f"{name}, part {number}", part) for number, part in enumerate(content)
    )


def plain(name: str, value: Any) -> Any:
    """The value rebuilt from text, numbers, None, lists and mappings.

    Args:
      name: begins the error.
      value: what a caller gave.

    Raises:
      TypeError: something else is in it, such as bytes, an array or an object.

    Example:
      >>> plain("tools", [{"n": np.int64(3)}])
      [{'n': 3}]
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.generic) and not isinstance(value, (str, bytes)):
        return plain(name, value.item())
    if isinstance(value, str):
        return str.__str__(checks.text(name, value))
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        items = value.items()
        return {plain(name, key): plain(name, item) for key, item in items}
    if isinstance(value, (list, tuple)):
        items = [plain(name, item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    raise TypeError(
        f"{name}: expected text, numbers, lists and mappings, got {_short(value)} "
        f"of type {type(value).__name__}"
    )


def _short(value: Any, most: int = 60) -> str:
    """The value's form in Python, cut at `most` characters."""
    shown = repr(value)
    return shown if len(shown) <= most else shown[:most] + "…"
