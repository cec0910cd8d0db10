"""Preference pairs from conversations that were rated.

A rating is of a whole conversation, not of an answer, and more than half of all ratings
are the default, 5: the preference is weak. A reward model is to be compared with the
length of the answers alone, and with pairs whose order was drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedjax_fm.datasets.packaged.chitchat import NO_RATING, RATINGS, Message
from fedjax_fm.datasets.table import Table, text_column

_DEFAULT = 5
Group = tuple[str, str, str]  # person, topic, split


def rated_pairs(
    table: Table, ratings: Sequence[str] = RATINGS, turns: int = 3
) -> Table:
    """Pairs of what a person said on one topic in two conversations, the better one first.

    The prompt is the topic that was proposed; an answer is what the person said in the
    first turns of a conversation. Within a person, a topic and a split, conversations
    are paired from both ends of the order of their mean ratings, each once.

    Left out and counted: `no_topic`, `unrated`, `default` (all ratings are 5), `single`
    (no other one to pair it with), `tie` (equal ratings) and `same_text`.

    Args:
      table: of `load_chitchat`, or rows of it.
      ratings: whose mean decides, of "witty", "interesting", "upbeat".
      turns: of the person that make an answer, from the first on.

    Returns:
      A table of columns `prompt`, `chosen`, `rejected` (object, str), `person` (str),
      `gap` (float32, of the mean ratings, above 0) and `split` (str).

    Raises:
      ValueError: no rating, an unknown one, `turns` below 1, or no pair at all.

    References:
      Myers, Etchart, Fulda (2020). Conversational Scaffolding. ICAART.

    Example:
      >>> def talk(text: str) -> tuple[dict[str, str], ...]:
      ...     return ({"role": "assistant", "content": text},)
      >>> messages = np.empty(2, object)
      >>> messages[:] = [talk("Tea, and you?"), talk("Tea.")]
      >>> columns = {
      ...     "messages": messages,
      ...     "person": np.array(["p", "p"]),
      ...     "prompt": np.array(["What do you drink?"] * 2, object),
      ...     "split": np.array(["train", "train"]),
      ...     "witty": np.array([9, 2]),
      ... }
      >>> pairs = rated_pairs(Table(columns, {}), ["witty"])
      >>> pairs["chosen"][0], pairs["rejected"][0], float(pairs["gap"][0])
      ('Tea, and you?', 'Tea.', 7.0)
    """
    _check(ratings, turns)
    marks = np.stack([np.asarray(table[name]) for name in ratings], axis=1)
    means, dropped = marks.mean(axis=1), Counter()
    groups: dict[Group, list[int]] = {}
    for row in range(len(table)):
        reason = _useless(str(table["prompt"][row]), marks[row])
        if reason is not None:
            dropped[reason] += 1
            continue
        key = tuple(str(table[name][row]) for name in ("person", "prompt", "split"))
        groups.setdefault(key, []).append(row)  # type: ignore[arg-type]
    rows = []
    for (person, topic, split), members in groups.items():
        for low, high in _ends(members, means, dropped):
            better, worse = (
                _said(table["messages"][row], turns) for row in (high, low)
            )
            if better == worse:
                dropped["same_text"] += 2
                continue
            gap = np.float32(means[high] - means[low])
            rows.append((topic, better, worse, person, gap, split))
    if not rows:
        raise ValueError(
            f"expected two conversations of a person on one topic with different "
            f"ratings, got {len(table)} rows without any: {dict(dropped)}"
        )
    columns = list(zip(*rows, strict=True))
    names = ("prompt", "chosen", "rejected", "person", "gap", "split")
    arrays = {
        name: text_column(list(values)) if place < 3 else np.array(values)
        for place, (name, values) in enumerate(zip(names, columns, strict=True))
    }
    more = {"name": "chitchat: rated pairs", "dropped": dict(dropped)}
    return Table(arrays, {**table.provenance, **more, "rows": len(rows)})


def _useless(topic: str, marks: np.ndarray) -> str | None:
    """Why a conversation cannot be in a pair, in a word; None where it can."""
    if not topic.strip():
        return "no_topic"
    if (marks == NO_RATING).any():
        return "unrated"
    if (marks == _DEFAULT).all():
        return "default"
    return None


def _ends(
    members: list[int], means: np.ndarray, dropped: Counter[str]
) -> list[tuple[int, int]]:
    """The lowest with the highest, the next with the next, as far as they differ."""
    order = sorted(members, key=lambda row: (means[row], row))
    dropped["single"] += len(order) % 2
    half = len(order) // 2
    pairs = (
        list(zip(order[:half], reversed(order[-half:]), strict=True)) if half else []
    )
    different = [(low, high) for low, high in pairs if means[low] < means[high]]
    dropped["tie"] += 2 * (len(pairs) - len(different))
    return different


def _said(messages: Sequence[Message], turns: int) -> str:
    """What the person said in the first turns."""
    own = [m["content"] for m in messages if m["role"] == "assistant"]
    return "\n".join(own[:turns])


def _check(ratings: Sequence[str], turns: int) -> None:
    """Refuses ratings that are not there, and no turns."""
    unknown = [name for name in ratings if name not in RATINGS]
    if unknown or not ratings or isinstance(ratings, str):
        raise ValueError(f"expected some of {RATINGS} as ratings, got {ratings!r}")
    if turns < 1:
        raise ValueError(f"expected turns >= 1, got turns={turns}")
