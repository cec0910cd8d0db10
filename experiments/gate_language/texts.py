"""The texts that the gate of language models judges, by name.

A task is conversations that train, that validate and that test, and what its control
does to them. A new one is a function that reads it and a line of `TASKS`.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_fm import datasets
from fedjax_fm.datasets import reasoning
from fedjax_fm.experiments.generate import Config, speeches
from fedjax_fm.experiments.shared.conversations import Conversation

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEST_PLAYS, VALIDATION_PLAYS = 6, 6
QUESTIONS = 200  # of each kind


class Texts(NamedTuple):
    """Conversations by what they are for.

    Attributes:
      say: `row -> messages`; the assistant's have a loss.
      train: row numbers.
      validation: row numbers, of other groups.
      test: row numbers, of groups that are nowhere else.
      check: `(row, answer) -> (is_right, is_parsed)` of the last message; None where
        no answer is the only right one.
    """

    say: Callable[[int], Conversation]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    check: Callable[[int, str], reasoning.Checked] | None = None


class LanguageTask(NamedTuple):
    """A task of the gate of language models.

    Attributes:
      read: its texts.
      shuffles: what the control does. "tokens": permutes the tokens of all answers;
        "answers": gives each question the answer of another.
    """

    read: Callable[[], Texts]
    shuffles: Literal["tokens", "answers"]


def conversations() -> Texts:
    """Chitchat; people of the test, and of the validation, are nowhere else."""
    table = datasets.load_chitchat()
    outer = datasets.hold_out_people(table, 0.2)
    inner = datasets.hold_out_people(table.select(outer["train"]), 0.2, seed=1)

    def say(row: int) -> Conversation:
        spoken = list(table["messages"][row])
        while spoken and spoken[0]["role"] != "user":  # an answer needs a question
            spoken = spoken[1:]
        return [_system("You chat with a stranger."), *spoken]

    return Texts(
        say=say,
        train=outer["train"][inner["train"]],
        validation=outer["train"][inner["test"]],
        test=outer["test"],
    )


def questions() -> Texts:
    """Made questions of eleven kinds with one right answer, split by question."""
    table = datasets.make_reasoning(QUESTIONS, seed=2026)

    def say(row: int) -> Conversation:
        return [
            _system("Answer with the answer alone."),
            {"role": "user", "content": table["prompt"][row]},
            {"role": "assistant", "content": table["answer"][row]},
        ]

    def check(row: int, answer: str) -> reasoning.Checked:
        expected = table["answer"][row]
        return reasoning.check(str(table["task"][row]), answer, expected)

    return Texts(
        say=say,
        train=np.flatnonzero(table["split"] == "train"),
        validation=np.flatnonzero(table["split"] == "validation"),
        test=np.flatnonzero(table["split"] == "test"),
        check=check,
    )


def roles() -> Texts:
    """Shakespeare's speeches, answers to the speech before; plays are held out."""
    said = speeches(Config())
    plays = np.random.default_rng(2026).permutation(np.unique(said.groups))
    n = TEST_PLAYS + VALIDATION_PLAYS
    parts = (plays[n:], plays[TEST_PLAYS:n], plays[:TEST_PLAYS])
    train, validation, test = (
        np.flatnonzero(np.isin(said.groups, part)) for part in parts
    )

    def say(row: int) -> Conversation:
        return said.say(row, 0)

    return Texts(say=say, train=train, validation=validation, test=test)


def prose() -> Texts:
    """The next sentence of a text of 1961 in the Brown corpus; whole texts are held out."""
    table = datasets.load_brown()
    documents = table["document"]
    has_next = np.append(documents[1:] == documents[:-1], False)

    def say(row: int) -> Conversation:
        return [
            _system(f"Go on with this text ({table['genre'][row]})."),
            {"role": "user", "content": written(table["tokens"][row])},
            {"role": "assistant", "content": written(table["tokens"][row + 1])},
        ]

    def of(split: str) -> np.ndarray:
        return np.flatnonzero(has_next & (table["split"] == split))

    return Texts(
        say=say, train=of("train"), validation=of("validation"), test=of("test")
    )


def written(tokens: Sequence[str]) -> str:
    """The tokens of the Brown corpus as people write.

    Args:
      tokens: words and marks; "``" and "''" are quotes.

    Example:
      >>> written(["``", "Well", "''", ",", "he", "said", "."])
      '"Well", he said.'
    """
    text = " ".join(tokens).replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" ([.,;:?!)])", r"\1", text).replace("( ", "(")


def _system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


TASKS = {
    "conversations": LanguageTask(conversations, "tokens"),
    "prose": LanguageTask(prose, "tokens"),
    "reasoning": LanguageTask(questions, "answers"),
    "roles": LanguageTask(roles, "tokens"),
}


@functools.cache
def read(name: str) -> Texts:
    """The texts of a task, read once.

    Args:
      name: a key of `TASKS`.
    """
    return TASKS[name].read()
