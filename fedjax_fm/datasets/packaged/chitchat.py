"""Conversations of people who chose to chat with strangers for research, by person.

Names and small talk of real people: show nobody's text in a report.

References:
  Myers, Etchart, Fulda (2020). Conversational Scaffolding: An Analogy-Based Approach to
  Response Prioritization in Open-Domain Dialogs. ICAART.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.datasets.draws import Draws
from fedjax_fm.datasets.hashed import split_of, splits_of
from fedjax_fm.datasets.packaged.columns import object_column
from fedjax_fm.datasets.packaged.sources import opened, provenance
from fedjax_fm.datasets.table import DataFileError, Table, text_column

_MEMBER = "chitchat_dataset/dataset.json"
RATINGS = ("witty", "interesting", "upbeat")
NO_RATING = 0

Message = Mapping[str, str]  # "role" and "content", as chat templates take them


class Reply(NamedTuple):
    """What a person answered, and what it was an answer to.

    Attributes:
      context: the turns before it, one a line, the latest last.
      text: of the answer.
      conversation: its id.
    """

    context: str
    text: str
    conversation: str


def load_chitchat(cache: str | Path | None = None) -> Table:
    """Loads conversations of two people, a row for each of them, a client a person.

    In a row the person is the assistant and the other one the user. Messages that
    somebody sent in one turn are joined by line breaks. A conversation may begin with
    the assistant. A rating is of the whole conversation; more than half of them are the
    default, 5.

    Left out and counted: `one_sided`, conversations in which only one person wrote.

    Args:
      cache: see `sources.cache_folder`.

    Returns:
      A table of columns `messages` (object, a tuple of {"role", "content"}), `person`,
      `partner`, `conversation` (str, random ids), `prompt` (object, str: what was
      proposed as a topic, or ""), `witty`, `interesting`, `upbeat` (int32: 1 to 10, 0
      for none) and `split` (str: train, validation, test; by conversation, both of its
      rows together).

    Raises:
      MissingArchive: the package is not there; the message says how it is fetched.
      DataFileError: it is not the known one, or not laid out as expected.

    References:
      Myers, Etchart, Fulda (2020).

    Example:
      >>> table = load_chitchat()  # doctest: +SKIP
    """
    archive, release = opened("chitchat", cache)
    conversations = json.loads(archive.read(_MEMBER))
    rows = []
    one_sided = 0
    for name, conversation in conversations.items():
        turns = turns_of(conversation["messages"])
        people = list(dict.fromkeys(sender for sender, _ in turns))
        if len(people) != 2:
            one_sided += 1
            continue
        ratings = conversation.get("ratings") or {}
        marks = {kind: int(ratings.get(kind, NO_RATING)) for kind in RATINGS}
        for person, partner in (people, people[::-1]):
            rows.append(
                {
                    "messages": as_messages(turns, person),
                    "person": person,
                    "partner": partner,
                    "conversation": name,
                    "prompt": conversation.get("prompt") or "",
                    **marks,
                }
            )
    if not rows:
        raise DataFileError(f"{archive.path.name}: no conversation of two people")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    arrays = {name: np.array(columns[name]) for name in columns if name != "messages"}
    arrays |= {kind: arrays[kind].astype(np.int32) for kind in RATINGS}
    arrays["messages"] = object_column(columns["messages"])
    arrays["prompt"] = text_column(columns["prompt"])
    arrays["split"] = splits_of(columns["conversation"])
    dropped = {"one_sided": one_sided}
    return Table(arrays, provenance("chitchat", release, len(rows), dropped))


def turns_of(messages: Iterable[Iterable[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    r"""The turns of a conversation; neighbouring ones of one sender are one.

    Args:
      messages: of the file: turns of messages with `sender` and `text`.

    Returns:
      (sender, text) of each turn; empty messages are left out.

    Example:
      >>> turns_of([[{"sender": "a", "text": "Hi"}, {"sender": "a", "text": " you "}]])
      [('a', 'Hi\nyou')]
    """
    flat = [message for turn in messages for message in turn if message["text"].strip()]
    return [
        (sender, "\n".join(message["text"].strip() for message in group))
        for sender, group in itertools.groupby(flat, key=_sender)
    ]


def _sender(message: Mapping[str, Any]) -> str:
    return message["sender"]


def as_messages(turns: Sequence[tuple[str, str]], person: str) -> tuple[Message, ...]:
    """Turns as messages of a chat, with a person as the assistant.

    Args:
      turns: of `turns_of`.
      person: one of the senders.

    Returns:
      Messages with "role" and "content".

    Example:
      >>> as_messages([("a", "Hi"), ("b", "Yes?")], "b")[1]
      {'role': 'assistant', 'content': 'Yes?'}
    """
    return tuple(
        {"role": "assistant" if sender == person else "user", "content": text}
        for sender, text in turns
    )


def reply_choice(
    table: Table, least_words: int = 3, turns: int = 3, seed: int = 0
) -> Table:
    """Which is the reply: the true one, or one that the person gave elsewhere?

    Every context comes twice, with the reply that followed it (label 1) and with one of
    the same person from another conversation of the same split (label 0). Every reply
    comes twice, too, once true and once false. So neither the context nor the reply
    alone says anything of the label.

    Within a person's conversations of a split, the replies in a row are matched with
    those of a circular shift. A conversation with more replies than all others of the
    person together keeps as many as they have; who has one conversation is left out.

    Args:
      table: of `load_chitchat`, or rows of it.
      least_words: shorter replies, which fit everywhere, are left out.
      turns: of the context, at most.
      seed: of the shifts.

    Returns:
      A table of columns `context`, `reply` (object, str), `label` (int32), `person`,
      `conversation` (str, of the context) and `split`; `dropped` of the provenance
      counts the replies that were left out, by reason.

    Raises:
      ValueError: `least_words` or `turns` below 1, or no person with two conversations.
    """
    if min(least_words, turns) < 1:
        raise ValueError(
            "expected least_words >= 1 and turns >= 1, got "
            f"least_words={least_words}, turns={turns}"
        )
    groups: dict[tuple[str, str], list[Reply]] = {}
    dropped: Counter[str] = Counter()
    for row in range(len(table)):
        key = (str(table["person"][row]), str(table["split"][row]))
        conversation = str(table["conversation"][row])
        messages = table["messages"][row]
        own = groups.setdefault(key, [])
        for reply in _replies(messages, conversation, turns):
            if len(reply.text.split()) < least_words:
                dropped["short"] += 1
            else:
                own.append(reply)
    rows = []
    for (person, split), replies in groups.items():
        kept = _mixable(replies, dropped)
        others = _others(kept, f"{seed}/{person}/{split}")
        for reply, other in zip(kept, others, strict=True):
            shared = {"person": person, "split": split, "context": reply.context}
            shared["conversation"] = reply.conversation
            rows.append({**shared, "reply": reply.text, "label": 1})
            rows.append({**shared, "reply": other.text, "label": 0})
    if not rows:
        raise ValueError(
            "expected a person with replies in two conversations of a split, got "
            f"{len(table)} rows without one"
        )
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    long = ("context", "reply")
    arrays = {
        name: text_column(values) if name in long else np.array(values)
        for name, values in columns.items()
    }
    arrays["label"] = arrays["label"].astype(np.int32)
    more = {"name": "chitchat: choice of the reply", "dropped": dict(dropped)}
    return Table(arrays, {**table.provenance, **more, "rows": len(rows)})


def _replies(
    messages: Sequence[Message], conversation: str, turns: int
) -> Iterable[Reply]:
    """What the assistant answered; an opening is no answer."""
    for place, message in enumerate(messages):
        if place and message["role"] == "assistant":
            before = messages[max(0, place - turns) : place]
            context = "\n".join(earlier["content"] for earlier in before)
            yield Reply(context, message["content"], conversation)


def _mixable(replies: Sequence[Reply], dropped: Counter[str]) -> list[Reply]:
    """Different replies, of which no conversation has more than half."""
    different = list({reply.text: reply for reply in reversed(replies)}.values())[::-1]
    dropped["repeated"] += len(replies) - len(different)
    counts = Counter(reply.conversation for reply in different)
    if not counts:
        return []
    largest, count = counts.most_common(1)[0]
    allowed = min(count, len(different) - count)
    of_largest = [x for x in different if x.conversation == largest][:allowed]
    others = [x for x in different if x.conversation != largest]
    dropped["of_a_long_conversation"] += count - allowed
    return [*of_largest, *others]


def _others(replies: Sequence[Reply], key: str) -> list[Reply]:
    """For each reply one of another conversation, each of them once."""
    if not replies:
        return []
    order = sorted(range(len(replies)), key=lambda i: replies[i].conversation)
    largest = max(Counter(reply.conversation for reply in replies).values())
    # Conversations are blocks of this order: a shift by a whole block or more, forwards
    # and backwards, leaves each of them.
    shift = Draws(key).integer(largest, len(replies) - largest)
    target = {row: order[(i + shift) % len(order)] for i, row in enumerate(order)}
    return [replies[target[row]] for row in range(len(replies))]


def hold_out_people(
    table: Table, share: float = 0.2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Splits by person: nobody whose words are in training is a person of the test.

    In a training row neither the person nor the partner is held out, in a test row the
    person is. So no conversation is on both sides; conversations of a held-out partner
    with a person who is not held out are in neither. Somebody with very many partners
    takes all of their conversations along: look at the sizes.

    Args:
      table: of `load_chitchat`.
      share: of the people, above 0 and below 1.
      seed: of the choice, which depends on a person's id and the seed alone.

    Returns:
      {"train": rows, "test": rows}, int64, ascending.

    Raises:
      ValueError: a share that is not between 0 and 1, or a side that is empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"expected 0 < share < 1, got share={share}")
    shares = {"test": share, "train": 1 - share}
    people = {*table["person"].tolist(), *table["partner"].tolist()}
    held_out = {p for p in people if split_of(f"{seed}/{p}", shares) == "test"}
    person = np.array([name in held_out for name in table["person"].tolist()])
    partner = np.array([name in held_out for name in table["partner"].tolist()])
    rows = {
        "train": np.flatnonzero(~person & ~partner),
        "test": np.flatnonzero(person),
    }
    if empty := [name for name, found in rows.items() if not found.size]:
        raise ValueError(
            f"no row is left for {empty[0]!r}: {len(held_out)} of {len(people)} people "
            f"are held out with share={share}, seed={seed}"
        )
    return rows
