"""From a table of any columns to examples of one kind.

conversation   messages, the assistant's of which are trained
text           a text, all of whose tokens are trained
classes        a text, or two, or an image, and its class
pairs          a prompt and two answers, one of which was preferred
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from fedjax_fm.finetune import pairs
from fedjax_fm.finetune.files import Source
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.models.conversations import plain_messages
from fedjax_fm.population.columns import TableLike
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import nearest

Kind = Literal["conversation", "text", "classes", "pairs"]
ROLES = (
    "prompt", "input", "response", "messages", "text", "text_pair", "label", "image",
    "chosen", "rejected",
)  # fmt: skip
# What columns are usually called, for tables whose columns nobody named.
USUAL = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "response": ("response", "output", "completion", "answer"),
    "text": ("text", "sentence", "sentence1", "premise"),
    "text_pair": ("text_pair", "sentence2", "hypothesis"),
    "image": ("image", "img"),
    "label": ("label", "labels", "class", "category"),
    "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"),
}
MOST_CLASSES = 1000


class Trained(Protocol):
    """What a model was trained for."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order of their numbers."""
        ...


class Roles(NamedTuple):
    """Which column is what.

    Attributes:
      columns: {role: column}, of `ROLES`.
      guessed: whether the columns were found by their usual names.
    """

    columns: dict[str, str]
    guessed: bool

    @property
    def kind(self) -> Kind:
        """The kind of example that these columns make."""
        if "chosen" in self.columns:
            return "pairs"
        if "messages" in self.columns or "prompt" in self.columns:
            return "conversation"
        return "classes" if "label" in self.columns else "text"


class Examples(NamedTuple):
    """Examples of one kind, in the order of their table.

    Attributes:
      kind: of all of them.
      values: conversations (lists of messages), texts, pairs of texts, images, or
        `Pair`s.
      labels: i32[n] of classes; None for other kinds.
      classes: names of the classes, in order of their numbers.
      rows: i64[n], the rows of the table.
      dropped: {reason: rows}.
    """

    kind: Kind
    values: list[Any]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    rows: np.ndarray
    dropped: dict[str, int]

    @property
    def is_image(self) -> bool:
        """Whether the values are images."""
        value = self.values[0]
        return self.kind == "classes" and not isinstance(value, (str, tuple))

    def select(self, places: np.ndarray) -> "Examples":
        """Some of the examples.

        Args:
          places: i64[m], of this list.
        """
        labels = None if self.labels is None else self.labels[places]
        values = [self.values[place] for place in places]
        return self._replace(values=values, labels=labels, rows=self.rows[places])


def choose(settings: Settings, source: Source) -> Roles:
    """Decides which column is what.

    Args:
      settings: name columns, or none.
      source: has the columns.

    Returns:
      The roles: those that are named, else those of usual names.

    Raises:
      UsageError: a column that is not there; roles that do not go together; usual names
        that fit in no way or in several.

    Example:
      >>> table = {"instruction": ["a"], "output": ["b"], "user": [1]}
      >>> source = Source(table=table, name="t", kind="csv", sha256="")
      >>> choose(Settings(), source).columns
      {'prompt': 'instruction', 'response': 'output'}
    """
    names = source.columns
    given = {role: getattr(settings, role) for role in ROLES}
    given = {role: name for role, name in given.items() if name is not None}
    for role, name in given.items():
        if name not in names:
            raise UsageError(
                f"--{role.replace('_', '-')}: {nearest(name, names, 'column')}"
            )
    if given:
        _check_roles(given, names)
        return Roles(columns=given, guessed=False)
    if source.roles:
        return Roles(columns=dict(source.roles), guessed=False)
    return Roles(columns=_usual(names), guessed=True)


def _check_roles(given: dict[str, str], names: Sequence[str]) -> None:
    """Raises UsageError for roles that do not make one kind of example."""
    roles = set(given)
    fitting = (
        {"messages"}, {"prompt", "response"}, {"prompt", "input", "response"},
        {"text"}, {"text", "label"}, {"text", "text_pair", "label"}, {"image", "label"},
        {"chosen", "rejected"}, {"prompt", "chosen", "rejected"},
    )  # fmt: skip
    if roles in fitting:
        return
    flags = ", ".join(f"--{role.replace('_', '-')}" for role in sorted(roles))
    raise UsageError(
        f"{flags} do not make an example: give --prompt and --response (and --input), or "
        "--messages, or --text, or --text and --label (and --text-pair), or --image and "
        "--label, or --chosen and --rejected (and --prompt). The columns are: "
        f"{', '.join(names)}"
    )


def _usual(names: Sequence[str]) -> dict[str, str]:
    """Roles by usual names of columns, if they fit in exactly one way."""
    found = {
        role: [name for name in names if name.lower() in usual]
        for role, usual in USUAL.items()
    }
    several = {role: columns for role, columns in found.items() if len(columns) > 1}
    one = {role: columns[0] for role, columns in found.items() if len(columns) == 1}
    ways = [
        {role: one[role] for role in roles if role in one}
        for roles in (
            ("messages",),
            ("prompt", "input", "response"),
            ("image", "label"),
            ("text", "text_pair", "label"),
            ("chosen", "rejected", "prompt"),
        )
        if _fits(roles, one)
    ]
    if len(ways) == 1 and not several:
        return ways[0]
    none = not ways and not several
    why = "fit no kind of example" if none else "can be read in several ways"
    raise UsageError(
        f"the columns {', '.join(names)} {why}; say what they are: --prompt and --response, "
        "or --messages, or --text, or --text and --label, or --image and --label, or "
        "--chosen and --rejected"
    )


def _fits(roles: Sequence[str], one: dict[str, str]) -> bool:
    """Whether the columns that these roles need are there."""
    needed = {"input", "text_pair"}
    if roles[0] == "text":
        needed.add("label")
    if roles[0] == "chosen":
        needed.add("prompt")
    return all(role in one for role in roles if role not in needed)


def make(source: Source, roles: Roles, trained: Trained | None = None) -> Examples:
    """Makes examples of the rows; rows that hold none are left out and counted.

    Args:
      source: the table.
      roles: which column is what.
      trained: what a model was trained for, which reads these now. Rows need no answer
        then, and no class: -1 where it is missing.

    Returns:
      The examples that are left.

    Raises:
      UsageError: values of another kind than their role takes, which names the row; no
        example is left.

    Example:
      >>> table = {"text": ["good", "", "bad"], "label": ["yes", "no", "no"]}
      >>> source = Source(table=table, name="t", kind="csv", sha256="")
      >>> examples = make(source, choose(Settings(), source))
      >>> examples.values, examples.labels.tolist(), examples.dropped
      (['good', 'bad'], [1, 0], {'empty text': 1})
    """
    columns = {
        role: _values(source.table, name)
        for role, name in roles.columns.items()
        if name in source.columns
    }
    readers = {
        "conversation": _conversation,
        "text": _plain_text,
        "classes": _with_class,
        "pairs": _pair,
    }
    reader = readers[roles.kind]
    if trained is not None:
        reader = {"conversation": _asked, "classes": _input}.get(roles.kind, reader)
    values, kept, dropped = [], [], Counter()
    names = source.classes.get(roles.columns.get("label", ""))
    if names and "label" in columns:
        columns["label"] = _by_name(columns["label"], names, roles.columns["label"])
    n_rows = len(next(iter(columns.values())))
    for row in range(n_rows):
        cells = {role: column[row] for role, column in columns.items()}
        found = reader(cells, f"row {row} of {source.name}")
        if isinstance(found, _Reason):
            dropped[found.text] += 1
        else:
            begin = _first_question(found) if roles.kind == "conversation" else 0
            dropped["a first message of the assistant, which is left out"] += begin > 0
            values.append(found[begin:] if begin else found)
            kept.append(row)
    if not values:
        why = ", ".join(f"{n} with {reason}" for reason, n in dropped.items())
        raise UsageError(
            f"{source.name} has no example that can be used: {why or 'no rows'}"
        )
    rows, labels, classes = np.array(kept, np.int64), None, ()
    if trained is not None and roles.kind == "classes":
        of_rows = [
            columns["label"][row] if "label" in columns else None for row in kept
        ]
        labels, classes = _found(of_rows, trained.classes, roles), trained.classes
    elif roles.kind == "classes":
        of_rows = [columns["label"][row] for row in kept]
        labels, classes = _numbered(of_rows, roles, names)
    return Examples(
        kind=roles.kind,
        values=values,
        labels=labels,
        classes=classes,
        rows=rows,
        dropped={reason: n for reason, n in dropped.items() if n},
    )


class _Reason(NamedTuple):
    """Why a row is left out."""

    text: str


def _values(table: TableLike, name: str) -> list[Any]:
    """A column as a list of plain values."""
    column = table[name]
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            return list(getattr(column, method)())
    return list(column)


def _is_missing(value: Any) -> bool:
    """None, NaN and their like."""
    if value is None:
        return True
    return isinstance(value, float) and value != value


def _text(value: Any, where: str, role: str) -> "str | _Reason":
    """A cell that has to be text."""
    if _is_missing(value):
        return _Reason(f"missing {role}")
    if not isinstance(value, str):
        raise UsageError(
            f"{where}: expected the {role} as text, got {value!r:.60} of type "
            f"{type(value).__name__}"
        )
    return value if value.strip() else _Reason(f"empty {role}")


def _conversation(cells: dict[str, Any], where: str) -> Any:
    """Messages of a row: as they are, or of its prompt, input and response."""
    if "messages" in cells:
        return _messages(cells["messages"], where)
    prompt = _text(cells["prompt"], where, "prompt")
    response = _text(cells["response"], where, "response")
    for found in (prompt, response):
        if isinstance(found, _Reason):
            return found
    question: dict[str, Any] = {"role": "user", "content": prompt}
    about = cells.get("input")
    if isinstance(about, str) and about.strip():
        question["input"] = about
    elif about is not None and not isinstance(about, str) and not _is_missing(about):
        raise UsageError(f"{where}: expected the input as text, got {about!r:.60}")
    return [question, {"role": "assistant", "content": response}]


def _messages(value: Any, where: str, needs_answer: bool = True) -> Any:
    """A list of messages, perhaps written as JSON."""
    if _is_missing(value):
        return _Reason("missing messages")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{where}: expected messages as a list of {{role, content}}, got "
                f"{value!r:.60}"
            ) from error
    try:
        messages = plain_messages(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error
    roles = [message["role"] for message in messages]
    if set(roles) == {"assistant"}:
        return _Reason("no prompt")
    if not needs_answer:
        return messages
    answers = [
        message.get("content")
        for message in messages[_first_question(messages) :]
        if message["role"] == "assistant"
    ]
    if not answers:
        return _Reason("no answer of the assistant")
    if all(isinstance(text, str) and not text.strip() for text in answers):
        return _Reason("empty response")
    return messages


def _asked(cells: dict[str, Any], where: str) -> Any:
    """Messages of a row that need not end with an answer."""
    if "messages" in cells:
        return _messages(cells["messages"], where, needs_answer=False)
    response = _text(cells.get("response"), where, "response")
    found = _conversation({**cells, "response": "?"}, where)
    is_open = isinstance(response, _Reason) and not isinstance(found, _Reason)
    if isinstance(found, _Reason) or is_open:
        return found[:1] if is_open else found
    found[1]["content"] = response
    return found


def _plain_text(cells: dict[str, Any], where: str) -> Any:
    return _text(cells["text"], where, "text")


def _pair(cells: dict[str, Any], where: str) -> Any:
    """Two answers to a prompt."""
    found = pairs.read(cells, where)
    return _Reason(found) if isinstance(found, str) else found


def _first_question(messages: list[dict[str, Any]]) -> int:
    """How many messages of the assistant, with no prompt before them, come first."""
    roles = [message["role"] for message in messages]
    return next(k for k, role in enumerate(roles) if role != "assistant")


def _with_class(cells: dict[str, Any], where: str) -> Any:
    """A text, a pair of texts or an image, of rows whose class is known."""
    if _is_missing(cells["label"]) or cells["label"] == "":
        return _Reason("missing label")
    return _input(cells, where)


def _input(cells: dict[str, Any], where: str) -> Any:
    """What a classifier reads of a row."""
    if "image" in cells:
        image = cells["image"]
        return _Reason("missing image") if image is None else _picture(image)
    text = _text(cells["text"], where, "text")
    if "text_pair" not in cells or isinstance(text, _Reason):
        return text
    second = _text(cells["text_pair"], where, "second text")
    return second if isinstance(second, _Reason) else (text, second)


def _picture(image: Any) -> Any:
    """An image as `datasets` stores it undecoded, opened; others as they are."""
    if isinstance(image, dict) and image.get("bytes"):
        import io

        from PIL import Image

        return Image.open(io.BytesIO(image["bytes"]))
    if isinstance(image, dict) and image.get("path"):
        return image["path"]
    if not isinstance(image, (list, np.ndarray)):
        return image
    array = np.asarray(image)
    whole = np.asarray(array, np.uint8)
    if not np.array_equal(whole, array):
        raise UsageError(
            f"expected images of whole numbers from 0 to 255, got {array.min()} to "
            f"{array.max()} of type {array.dtype}"
        )
    return whole[..., 0] if whole.ndim == 3 and whole.shape[-1] == 1 else whole


def _by_name(labels: list[Any], names: tuple[str, ...], column: str) -> list[Any]:
    """Numbers of a column as the names that its table has for them; -1 is none."""
    if len(set(names)) != len(names) or "" in names:
        raise UsageError(
            f"the column {column!r} names its classes {list(names)}: expected different "
            "names, none of them empty"
        )
    found = []
    for label in labels:
        number = None if _is_missing(label) else _class(label, column)
        if number is None or number == -1:
            found.append(None)
        elif isinstance(number, int) and 0 <= number < len(names):
            found.append(names[number])
        else:
            raise UsageError(
                f"the column {column!r} holds {label!r}, and names {len(names)} classes: "
                "expected numbers from 0, or -1 where the class is not known"
            )
    return found


def _numbered(
    labels: list[Any], roles: Roles, names: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(i32[n], names of the classes); words and numbers in order, as text.

    With the names of a table the order is the table's, and none is left out.
    """
    if names:
        if len(set(labels)) < 2:
            raise UsageError(
                f"all labels are {labels[0]!r}: there is nothing to tell apart"
            )
        number = {name: place for place, name in enumerate(names)}
        return np.array([number[name] for name in labels], np.int32), names
    plain = [_class(label, roles.columns["label"]) for label in labels]
    known = sorted(set(plain), key=lambda name: (isinstance(name, str), name))
    if len({type(name) for name in known}) > 1:
        raise UsageError(
            f"the column {roles.columns['label']!r} mixes numbers and words: "
            f"{known[0]!r} and {known[-1]!r}"
        )
    if len(known) < 2:
        raise UsageError(f"all labels are {known[0]!r}: there is nothing to tell apart")
    if len(known) > min(MOST_CLASSES, max(2, len(plain) // 2)):
        raise UsageError(
            f"the column {roles.columns['label']!r} has {len(known)} different values in "
            f"{len(plain)} rows: does it hold classes?"
        )
    number = {name: place for place, name in enumerate(known)}
    found = np.array([number[name] for name in plain], np.int32)
    return found, tuple(str(name) for name in known)


def _found(labels: list[Any], classes: tuple[str, ...], roles: Roles) -> np.ndarray:
    """i32[n], the places among known classes; -1 of what is missing."""
    found = np.full(len(labels), -1, np.int32)
    for place, label in enumerate(labels):
        if _is_missing(label) or label == "":
            continue
        name = label if label in classes else str(_class(label, roles.columns["label"]))
        if name not in classes:
            raise UsageError(
                f"the column {roles.columns['label']!r} has the class {name!r}, which "
                f"was not trained; there are {', '.join(classes)}"
            )
        found[place] = classes.index(name)
    return found


def _class(label: Any, column: str) -> Any:
    """A label as a whole number or as a word."""
    if isinstance(label, (bool, np.bool_)):
        return int(label)
    if isinstance(label, (int, np.integer)):
        return int(label)
    if isinstance(label, (float, np.floating)):
        if label in (np.inf, -np.inf) or label != int(label):
            raise UsageError(
                f"the column {column!r} holds {label}, which is no class; classes are "
                "whole numbers or words"
            )
        return int(label)
    if not isinstance(label, str):
        raise UsageError(
            f"the column {column!r} holds {label!r:.60}, which is no class"
        )
    word = label.strip()
    digits = word.removeprefix("-")
    return int(word) if digits.isascii() and digits.isdigit() else word


def key_of(value: Any, label: Any = None) -> str:
    """What two equal examples have in common; blanks at the ends do not count.

    Args:
      value: of `Examples.values`.
      label: its class, if it has one.
    """
    if isinstance(value, pairs.Pair):  # also the other way round
        sides = sorted(part.strip() for part in (value.chosen, value.rejected))
        return f"{key_of(value.prompt)} {json.dumps(sides)}"
    if isinstance(value, list):
        said = [{k: _stripped(part) for k, part in m.items()} for m in value]
        return json.dumps(said, sort_keys=True)
    if isinstance(value, (str, tuple)):
        parts = [value] if isinstance(value, str) else list(value)
        return json.dumps([[part.strip() for part in parts], str(label)])
    return f"{_image_key(value)} {label}"


def _stripped(part: Any) -> Any:
    return part.strip() if isinstance(part, str) else part


def _image_key(value: Any) -> str:
    import hashlib
    from pathlib import Path

    if isinstance(value, (str, Path)):
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()
    raw = value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()
    return hashlib.sha256(raw).hexdigest()
