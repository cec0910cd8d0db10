"""An example for every answer of a conversation, after as much of it as has room.

What is too long is cut on the left: whole messages as long as the rest opens with a
question, then words of that question. What a system message says stays.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_fm.finetune.examples import Examples
from fedjax_fm.models.chat import Chat
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.models.tokens import without_padding
from fedjax_fm.runs.errors import UsageError

Conversation = list[dict[str, Any]]
SYSTEM = ("system", "developer")
EMPTY = "an empty answer of the assistant within a conversation"


class Fitted(NamedTuple):
    """A conversation as tokens.

    Attributes:
      ids: i32[n].
      labels: i32[n], the ids of what is trained, `IGNORED` elsewhere.
      tokens_cut: that will not be read.
      messages_cut: that were left out.
    """

    ids: np.ndarray
    labels: np.ndarray
    tokens_cut: int
    messages_cut: int


def each_answer(examples: Examples, with_open: bool = False) -> Examples:
    """One example for every answer: the conversation up to it.

    Args:
      examples: of conversations.
      with_open: keeps conversations that end with a question, whole, as the last
        example of their row.

    Returns:
      As many examples as there are answers; those of one conversation share its row.

    Raises:
      UsageError: the examples are no conversations.

    Example:
      >>> talk = [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]
      >>> one = Examples(
      ...     kind="conversation", values=[talk], labels=None, classes=(),
      ...     rows=np.array([7]), dropped={},
      ... )
      >>> found = each_answer(one)
      >>> [len(value) for value in found.values], found.rows.tolist()
      ([2, 4], [7, 7])
    """
    if examples.kind != "conversation":
        raise UsageError(
            "--turns each makes an example of every answer; these rows are no "
            "conversations: leave it out"
        )
    values, rows, n_empty = [], [], 0
    for messages, row in zip(examples.values, examples.rows, strict=True):
        ends = []
        for place, message in enumerate(messages):
            is_answer = message["role"] == "assistant"
            n_empty += is_answer and _is_empty(message)
            if is_answer and not _is_empty(message):
                ends.append(place + 1)
        if with_open and messages[-1]["role"] != "assistant":
            ends.append(len(messages))
        values += [messages[:end] for end in ends]
        rows += [row] * len(ends)
    dropped = examples.dropped | ({EMPTY: n_empty} if n_empty else {})
    return examples._replace(
        values=values, rows=np.array(rows, np.int64), dropped=dropped
    )


def _is_empty(message: dict[str, Any]) -> bool:
    """Whether the assistant says nothing, and calls no tool."""
    content = message.get("content")
    says_nothing = isinstance(content, str) and not content.strip()
    return says_nothing and not message.get("tool_calls")


def fitted(chat: Chat, messages: Conversation, most: int) -> Fitted:
    """The tokens of a conversation whose last message, an answer, is trained.

    Earlier messages are left out until the rest fits. A last question that is too long
    by itself loses its first words, down to what the answer leaves it or to half of the
    room; an answer that is still too long is cut on the right.

    Args:
      chat: with its template.
      messages: of the conversation.
      most: tokens.

    Returns:
      The tokens, of which the first `most` are read. Without labels where not even the
      template and the system message leave room for a question.
    """
    ids, labels = encoded(chat, messages, "last")
    n_whole = len(ids)
    if n_whole <= most:
        return Fitted(ids=ids, labels=labels, tokens_cut=0, messages_cut=0)
    question = messages[:-1]
    room = most - (n_whole - len(chat.prompt_ids(question)))
    kept = context(chat, question, room, max(room, most // 2))
    if kept is None:
        none = np.full_like(labels, IGNORED)
        return Fitted(ids=ids, labels=none, tokens_cut=n_whole, messages_cut=0)
    ids, labels = encoded(chat, [*kept, messages[-1]], "last")
    return Fitted(
        ids=ids,
        labels=labels,
        tokens_cut=n_whole - min(len(ids), most),
        messages_cut=len(question) - len(kept),
    )


def context(
    chat: Chat, question: Conversation, room: int, alone: int | None = None
) -> Conversation | None:
    """As much of a conversation as fits before its answer, cut on the left.

    Args:
      chat: with its template.
      question: the conversation, the last message not the assistant's.
      room: tokens of the prompt.
      alone: tokens of the last question, with the system message, where it has to be
        cut itself; default `room`.

    Returns:
      The system messages and the last of the others, beginning with a user's; None
      where the last question cannot be cut to fit.
    """
    n_fixed = _system(question)
    starts = [
        place
        for place, message in enumerate(question)
        if message["role"] == "user" and place > n_fixed
    ]
    kept = question
    for start in [None, *starts]:
        if start is not None:
            kept = [*question[:n_fixed], *question[start:]]
        if len(chat.prompt_ids(kept)) <= room:
            return kept
    return _shortened(chat, kept, room if alone is None else alone)


def _system(messages: Sequence[dict[str, Any]]) -> int:
    """How many messages of the system come first."""
    roles = [message["role"] for message in messages]
    return next((k for k, role in enumerate(roles) if role not in SYSTEM), len(roles))


def _shortened(chat: Chat, question: Conversation, room: int) -> Conversation | None:
    """The same messages, of which the first of a user has lost its first words."""
    place = _system(question)
    excess = len(chat.prompt_ids(question)) - room
    if place == len(question) or question[place]["role"] != "user":
        return question if excess <= 0 else None
    message = question[place]
    while excess > 0:
        text = message.get("content")
        if not isinstance(text, str):
            return None
        with without_padding(chat.tokenizer) as plain:
            offsets = plain.encode(text, add_special_tokens=False).offsets
        if excess >= len(offsets):
            return None
        message = {**message, "content": text[offsets[excess][0] :]}
        question = [*question[:place], message, *question[place + 1 :]]
        excess = len(chat.prompt_ids(question)) - room
    return question


def encoded(
    chat: Chat, messages: Conversation, answers: Literal["all", "last"]
) -> tuple[np.ndarray, np.ndarray]:
    """A whole conversation as tokens, however long it is.

    Args:
      chat: with its template.
      messages: of the conversation.
      answers: which of them have labels.

    Returns:
      (ids, labels), i32[n] each.
    """
    text = chat.text(messages)
    with without_padding(chat.tokenizer) as plain:
        room = len(plain.encode(text, add_special_tokens=False).ids)
    found = chat.encode([messages], max(room, 1), truncate=True, answers=answers)
    n = int(found["attention_mask"][0].sum())
    return found["input_ids"][0, :n], found["labels"][0, :n]
