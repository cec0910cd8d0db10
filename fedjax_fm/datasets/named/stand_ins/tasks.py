"""Stand-in for Natural Instructions: a thousand small tasks on words, one a client."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from string import ascii_lowercase
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.datasets.named.benchmark import Request
from fedjax_fm.datasets.named.stand_ins.words import some, vocabulary

N_WORDS = 6  # of an input


class WordTask(NamedTuple):
    """A task on a list of words.

    Attributes:
      name: of the task.
      definition: what is to be done, in words.
      solve: from the words to the answer.
    """

    name: str
    definition: str
    solve: Callable[[list[str]], str]


@functools.cache
def word_tasks() -> tuple[WordTask, ...]:
    """All tasks, always in the same order: replacing letters, counting, picking words.

    Example:
      >>> task = word_tasks()[1]
      >>> task.definition, task.solve(["abba", "cab"])
      ("Replace every letter 'c' by 'i'.", 'abba iab')
      >>> len(word_tasks()) >= 738 + 119
      True
    """
    made = [*_by_place()]
    for letter in ascii_lowercase:
        made.append(
            (
                f"count_{letter}",
                f"How often is the letter {letter!r} in the text?",
                functools.partial(_count, letter),
            )
        )
        made.append(
            (
                f"with_{letter}",
                f"Which words have the letter {letter!r}? Write 'none' if none has.",
                functools.partial(_with, letter),
            )
        )
    replacing = [
        (
            f"replace_{old}_{new}",
            f"Replace every letter {old!r} by {new!r}.",
            functools.partial(_replace, old, new),
        )
        for old, new in itertools.permutations(ascii_lowercase, 2)
    ]
    made += replacing
    # In this order the held-out tasks, the last ones, would all be of one kind.
    order = np.random.default_rng(0).permutation(len(made))
    return tuple(
        WordTask(f"task{k:04d}_{made[place][0]}", made[place][1], made[place][2])
        for k, place in enumerate(order)
    )


def natural_instructions(request: Request) -> list[dict[str, Any]]:
    """Tasks on words in the schema of Natural Instructions; a client is a task.

    Tasks of the test split are those behind the training tasks.

    Args:
      request: the client of each row.

    Returns:
      Rows of `task_name`, `id`, `definition`, `inputs`, `targets`.
    """
    tasks = word_tasks()
    if request.test:
        tasks = tasks[-request.n_clients :]
    rows = []
    for number, client in enumerate(request.clients.tolist()):
        task = tasks[client]
        words = some(request.rng, vocabulary(), N_WORDS)
        rows.append(
            {
                "task_name": task.name,
                "id": f"{task.name}-{number}",
                "definition": task.definition,
                "inputs": " ".join(words),
                "targets": task.solve(words),
            }
        )
    return rows


def _by_place() -> list[tuple[str, str, Callable[[list[str]], str]]]:
    """Tasks about the places of words."""
    made = []
    for k in range(N_WORDS):
        made.append((f"word_{k}", f"Write word {k + 1}.", functools.partial(_word, k)))
        made.append(
            (f"first_{k}", f"Write the first {k + 1}.", functools.partial(_start, k))
        )
        made.append(
            (
                f"without_{k}",
                f"Leave out word {k + 1}.",
                functools.partial(_without, k),
            )
        )
    for i, j in itertools.combinations(range(N_WORDS), 2):
        made.append(
            (
                f"swap_{i}_{j}",
                f"Swap words {i + 1} and {j + 1}.",
                functools.partial(_swap, i, j),
            )
        )
    for n in range(100, 250):
        made.append(
            (
                f"append_{n}",
                f"Write the last word and the number {n}.",
                functools.partial(_append, n),
            )
        )
    return made


def _word(k: int, words: list[str]) -> str:
    return words[k]


def _start(k: int, words: list[str]) -> str:
    return " ".join(words[: k + 1])


def _without(k: int, words: list[str]) -> str:
    return " ".join([*words[:k], *words[k + 1 :]])


def _swap(i: int, j: int, words: list[str]) -> str:
    changed = list(words)
    changed[i], changed[j] = changed[j], changed[i]
    return " ".join(changed)


def _append(n: int, words: list[str]) -> str:
    return f"{words[-1]} {n}"


def _count(letter: str, words: list[str]) -> str:
    return str(sum(word.count(letter) for word in words))


def _with(letter: str, words: list[str]) -> str:
    return " ".join(word for word in words if letter in word) or "none"


def _replace(old: str, new: str, words: list[str]) -> str:
    return " ".join(words).replace(old, new)
