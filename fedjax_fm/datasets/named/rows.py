"""Rows of the hub to examples of one normal form: pure functions, one a schema.

A parser takes all rows and yields examples, because two schemas (a tree of messages,
users with a cap) cannot be read row by row. The normal form has these columns:

| columns | holds |
|---|---|
| `messages` | a list of {"role", "content"}, and "input" where a template has one |
| `text` | text to be modelled |
| `text`, `label` | a text and its class, or a number (STS-B) |
| `text`, `text_pair`, `label` | two texts and their class |
| `image`, `label` | uint8[height, width, channels] and its class |
| `prompt`, `chosen`, `rejected` | a question, the better and the worse answer |
| `category` | what the authors partition or hold out by |
| `client` | who has the row, where the data say so |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fedjax_fm.datasets.named.benchmark import Dropped, Example, Parser, Row
from fedjax_fm.datasets.table import DataFileError

PSEUDO_USER = 64  # rows of a user before the surplus becomes another (pfl-research)


def each(read: Callable[[Row], Example | Dropped]) -> Parser:
    """A parser that reads row by row.

    Args:
      read: one row to one example.

    Returns:
      A function of all rows.
    """

    def parse(rows: Iterable[Row]) -> Iterator[Example | Dropped]:
        return map(read, rows)

    return parse


def get(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column.

    Args:
      row: of the hub.
      name: of the column.

    Raises:
      DataFileError: the row has no such column; lists those that it has.

    Example:
      >>> get({"label": 1}, "label")
      1
    """
    if name not in row:
        raise DataFileError(
            f"expected a column {name!r}, the rows have {sorted(row)}: the data set "
            "is another one, or its schema has changed"
        )
    return row[name]


def one_answer(prompt: str, answer: str, given: str = "") -> list[dict[str, str]]:
    """A conversation of one question and one answer.

    Args:
      prompt: what is asked.
      answer: what is to be learnt.
      given: the instruction's input; "" for none.

    Returns:
      Two messages.

    Example:
      >>> one_answer("Add.", "3", "1 2")[0]
      {'role': 'user', 'content': 'Add.', 'input': '1 2'}
    """
    user = {"role": "user", "content": prompt}
    if given:
        user["input"] = given
    return [user, {"role": "assistant", "content": answer}]


# FlowerTune: what becomes of `instruction` and `input` differs from task to task.


def instruction_alone(row: Row) -> Example:
    """FlowerTune's general task: `input` is ignored, as in the authors' code.

    Args:
      row: `instruction`, `input`, `output`.

    Returns:
      {"messages"}.

    Example:
      >>> row = {"instruction": "Add.", "input": "1 2", "output": "3"}
      >>> instruction_alone(row)["messages"][0]["content"]
      'Add.'
    """
    prompt, answer = get(row, "instruction"), get(row, "output")
    return {"messages": one_answer(prompt, answer)}


def instruction_and_input(row: Row) -> Example:
    """FlowerTune's finance and code tasks: both, with one blank between them.

    The blank is there where the input is empty, too, as in the authors' code.

    Args:
      row: `instruction`, `input`, `output`.

    Returns:
      {"messages"}.

    Example:
      >>> row = {"instruction": "Add.", "input": "1 2", "output": "3"}
      >>> instruction_and_input(row)["messages"][0]["content"]
      'Add. 1 2'
    """
    prompt = f"{get(row, 'instruction')} {get(row, 'input')}"
    return {"messages": one_answer(prompt, get(row, "output"))}


def input_alone(row: Row) -> Example:
    """FlowerTune's medical task: the input is the instruction, which is dropped.

    Args:
      row: `instruction`, `input`, `output`.

    Returns:
      {"messages"}.

    Example:
      >>> row = {"instruction": "Answer.", "input": "What is gout?", "output": "..."}
      >>> input_alone(row)["messages"][0]["content"]
      'What is gout?'
    """
    prompt, answer = get(row, "input"), get(row, "output")
    return {"messages": one_answer(prompt, answer)}


def alpaca(row: Row) -> Example:
    """Alpaca's rows: the input, where there is one, has its own place in the template.

    Args:
      row: `instruction`, `input`, `output`.

    Returns:
      {"messages"}.
    """
    prompt, given = get(row, "instruction"), get(row, "input")
    return {"messages": one_answer(prompt, get(row, "output"), given)}


def dolly(row: Row) -> Example:
    """Dolly's rows: the context is the instruction's input.

    Args:
      row: `instruction`, `context`, `response`, `category`.

    Returns:
      {"messages", "category"}.
    """
    prompt, given = get(row, "instruction"), get(row, "context")
    messages = one_answer(prompt, get(row, "response"), given)
    return {"messages": messages, "category": get(row, "category")}


def natural_instructions(row: Row) -> Example:
    """Natural Instructions: definition and input; a task is a client.

    Args:
      row: `task_name`, `definition`, `inputs`, `targets`.

    Returns:
      {"messages", "category", "client"}.
    """
    task, given = get(row, "task_name"), get(row, "inputs")
    messages = one_answer(get(row, "definition"), get(row, "targets"), given)
    return {"messages": messages, "category": task, "client": task}


def commonsense(row: Row) -> Example:
    """Commonsense-170k: instruction and output, and what the instruction asks for.

    The file has no column that says which of the eight tasks a row is of, so `category`
    is read from the form of the answer: "solution", "ending" and "option" belong to one
    task each, "true" and "false" to another, "answer" to the four that remain.

    Args:
      row: `instruction`, `input`, `output`, `answer`.

    Returns:
      {"messages", "category"}.

    Example:
      >>> row = {"instruction": "Is it?", "input": "", "output": "true"}
      >>> commonsense({**row, "answer": "true"})["category"]
      'true/false'
    """
    prompt, given = get(row, "instruction"), get(row, "input")
    messages = one_answer(prompt, get(row, "output"), given)
    answer = str(get(row, "answer"))
    form = answer.rstrip("0123456789")
    category = "true/false" if form in ("true", "false") else form
    return {"messages": messages, "category": category}


# FedLLM-Bench: files {client: [rows]}, whose reader adds the column `client`.


def instruction_response(row: Row) -> Example:
    """FedLLM-Bench's rows for instruction tuning.

    Args:
      row: `client`, `instruction`, `response`.

    Returns:
      {"messages", "client"}.
    """
    prompt, answer = get(row, "instruction"), get(row, "response")
    messages = one_answer(prompt, answer)
    return {"messages": messages, "client": str(get(row, "client"))}


def turns(row: Row) -> Example | Dropped:
    """FedLLM-Bench's rows of several turns, in ShareGPT's format.

    As in the authors' code an opening turn of the assistant is left out. Unlike there,
    a last turn of the user is left out, too: nothing of it is trained.

    Args:
      row: `client`, `conversations`: a list of {"from": "human" or "gpt", "value"}.

    Returns:
      {"messages", "client"}.

    Raises:
      DataFileError: another speaker, or two turns of one speaker in a row.
    """
    roles = {"human": "user", "gpt": "assistant"}
    said = get(row, "conversations")
    unknown = [turn["from"] for turn in said if turn["from"] not in roles]
    if unknown:
        raise DataFileError(
            f"expected turns of 'human' and 'gpt', got one of {unknown[0]!r}"
        )
    messages = [
        {"role": roles[turn["from"]], "content": turn["value"]} for turn in said
    ]
    if messages and messages[0]["role"] == "assistant":
        messages = messages[1:]
    for number, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[number % 2]:
            raise DataFileError(
                f"expected turns of user and assistant in alternation, turn {number} "
                f"is the {message['role']}'s again"
            )
    messages = messages[: len(messages) // 2 * 2]
    if not messages:
        return Dropped("no answer")
    return {"messages": messages, "client": str(get(row, "client"))}


def preference(row: Row) -> Example:
    """FedLLM-Bench's pairs of answers.

    Args:
      row: `client`, `instruction`, `chosen`, `rejected`.

    Returns:
      {"prompt", "chosen", "rejected", "client"}.
    """
    return {
        "prompt": get(row, "instruction"),
        "chosen": get(row, "chosen"),
        "rejected": get(row, "rejected"),
        "client": str(get(row, "client")),
    }


# pfl-research


def aya(rows: Iterable[Row]) -> Iterator[Example]:
    """The Aya collection by annotator, with pseudo-users of 64 rows.

    Users come in order of first appearance. Rows beyond a user's first 64 become users
    "<id>-1", "<id>-2", ..., which stand behind all others: that is the order in which
    the authors take nine users in ten for training. Held-out users are then mostly the
    surplus of users who also train.

    Args:
      rows: `inputs`, `targets`, `user_id`, `language`.

    Yields:
      {"messages", "category", "client"}; the category is the language.
    """
    users: dict[str, list[Example]] = {}
    for row in rows:
        example = {
            "messages": one_answer(get(row, "inputs"), get(row, "targets")),
            "category": get(row, "language"),
        }
        users.setdefault(str(get(row, "user_id")), []).append(example)
    surplus: dict[str, list[Example]] = {}
    for user, own in users.items():
        for start in range(PSEUDO_USER, len(own), PSEUDO_USER):
            name = f"{user}-{start // PSEUDO_USER}"
            surplus[name] = own[start : start + PSEUDO_USER]
        users[user] = own[:PSEUDO_USER]
    for user, own in {**users, **surplus}.items():
        yield from ({**example, "client": user} for example in own)


def oasst(rows: Iterable[Row]) -> Iterator[Example | Dropped]:
    """OpenAssistant's trees: each answer with the message that it replies to.

    A client is the user who wrote the answer.

    Args:
      rows: `message_id`, `parent_id`, `user_id`, `text`, `role` ("prompter" or
        "assistant"), `lang`.

    Yields:
      {"messages", "category", "client"} for each answer, the category its language;
      `Dropped` where its question is not among the rows.
    """
    rows = list(rows)
    questions = {
        get(row, "message_id"): row for row in rows if get(row, "role") == "prompter"
    }
    for row in rows:
        if row["role"] != "assistant":
            continue
        question = questions.get(get(row, "parent_id"))
        if question is None:
            yield Dropped("no question")
            continue
        messages = one_answer(get(question, "text"), get(row, "text"))
        yield {
            "messages": messages,
            "category": get(row, "lang"),
            "client": str(get(row, "user_id")),
        }


# Classification and language modelling


def texts(first: str, second: str | None = None, label: str = "label") -> Parser:
    """A parser of one or two texts with a label; rows of label -1 have none.

    Args:
      first: column of the text.
      second: column of the other text; None for one.
      label: column of the class, or of a number.

    Returns:
      A function of all rows that yields {"text", "label"} and "text_pair", or
      `Dropped`.

    Example:
      >>> parse = texts("question", "sentence")
      >>> row = {"question": "Who?", "sentence": "Ann.", "label": 0}
      >>> next(parse([row]))
      {'text': 'Who?', 'text_pair': 'Ann.', 'label': 0}
    """

    def read(row: Row) -> Example | Dropped:
        value = get(row, label)
        if value == -1:
            return Dropped("no label")
        example = {"text": get(row, first)}
        if second is not None:
            example["text_pair"] = get(row, second)
        return {**example, "label": value}

    return each(read)


def images(image: str, label: str, client: str | None = None) -> Parser:
    """A parser of pictures with a class.

    Args:
      image: column of the picture, as the hub decodes it or as an array.
      label: column of the class.
      client: column of who has it; None where a partitioner says.

    Returns:
      A function of all rows that yields {"image", "label"} and "client".
    """

    def read(row: Row) -> Example:
        example = {"image": pixels(get(row, image)), "label": get(row, label)}
        if client is not None:
            example["client"] = str(get(row, client))
        return example

    return each(read)


def pixels(picture: Any) -> np.ndarray:
    """uint8[height, width, channels] of a picture.

    Args:
      picture: an array, or what `np.asarray` makes one of, such as a Pillow image.

    Raises:
      DataFileError: it has no two or three axes, or other values than bytes.

    Example:
      >>> pixels(np.zeros((28, 28), np.uint8)).shape
      (28, 28, 1)
    """
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.dtype != np.uint8:
        raise DataFileError(
            "expected a picture as bytes [height, width] or [height, width, "
            f"channels], got {array.dtype}{list(array.shape)}"
        )
    return array


def posts(text: str, client: str) -> Parser:
    """A parser of texts to be modelled.

    Args:
      text: column of the text.
      client: column of who wrote it.

    Returns:
      A function of all rows that yields {"text", "client"}.
    """

    def read(row: Row) -> Example:
        return {"text": get(row, text), "client": str(get(row, client))}

    return each(read)
