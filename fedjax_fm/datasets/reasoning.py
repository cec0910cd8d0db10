"""Questions with one right answer that is checked exactly, a client for each task.

They are made, not collected: any number, any seed, the same on every machine. A pretrained
model has met their kinds, not these questions.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_fm.datasets.draws import Draws
from fedjax_fm.datasets.hashed import splits_of
from fedjax_fm.datasets.table import Table, text_column

_TRIES = 50  # draws for each question that is wanted: a small task repeats itself

NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ida", "Jon", "Kim",
    "Leo", "Mia", "Nils", "Olga", "Paul", "Rosa", "Sam", "Tara", "Uri", "Vera", "Will",
    "Xena", "Yuri", "Zoe",
)  # fmt: skip
DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "tickets")
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"

Question = tuple[str, str]  # prompt and answer
_NUMBER = r"[+-]?[0-9]+"


class Kind(NamedTuple):
    """How an answer is read.

    Attributes:
      name: what is expected, in words.
      pattern: of the whole answer, without white space around it and a full stop.
      read: from the text to a value that is compared.
    """

    name: str
    pattern: re.Pattern[str]
    read: Callable[[str], object]


class ReasoningTask(NamedTuple):
    """A kind of question.

    Attributes:
      make: draws one question.
      kind: how its answers are read, a key of `KINDS`.
    """

    make: Callable[[Draws], Question]
    kind: str


class Checked(NamedTuple):
    """What was found in an answer.

    Attributes:
      is_right: whether it is the expected one; False where it could not be read.
      is_parsed: whether it could be read at all.
    """

    is_right: bool
    is_parsed: bool


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(_NUMBER, text))


KINDS: dict[str, Kind] = {
    "number": Kind("one whole number in digits", re.compile(_NUMBER), int),
    "numbers": Kind(
        "whole numbers with commas between them",
        re.compile(rf"{_NUMBER}(?:\s*,\s*{_NUMBER})*"),
        _numbers,
    ),
    "word": Kind("one word", re.compile(r"[A-Za-z]+"), str.lower),
    "yes_no": Kind("yes or no", re.compile(r"yes|no", re.IGNORECASE), str.lower),
}


def _made_up(draws: Draws, syllables: int) -> str:
    """A word that can be spoken and means nothing."""
    pairs = [draws.one(_CONSONANTS) + draws.one(_VOWELS) for _ in range(syllables)]
    return "".join(pairs)


def _arithmetic(draws: Draws) -> Question:
    a, b, c = (draws.integer(2, 20) for _ in range(3))
    if draws.one((True, False)):
        return f"What is {a} + {b} * {c}?", str(a + b * c)
    return f"What is ({a} - {b}) * {c}?", str((a - b) * c)


def _word_problem(draws: Draws) -> Question:
    name, thing = draws.one(NAMES), draws.one(THINGS)
    first, bought = draws.integer(5, 40), draws.integer(2, 20)
    given = draws.integer(1, first)
    text = (
        f"{name} has {first} {thing}, gives {given} away and buys {bought} more. "
        f"How many {thing} does {name} have now?"
    )
    return text, str(first - given + bought)


def _sequence(draws: Draws) -> Question:
    start, step = draws.integer(1, 99), draws.integer(2, 30)
    if draws.one((True, False)):
        start, step = start + 4 * step, -step
    shown = ", ".join(str(start + step * i) for i in range(4))
    return f"What number comes next: {shown}?", str(start + 4 * step)


def _sorting(draws: Draws) -> Question:
    numbers = draws.some(range(1, 100), draws.integer(3, 6))
    shown, ordered = (
        ", ".join(str(number) for number in row) for row in (numbers, sorted(numbers))
    )
    return f"Sort these numbers from smallest to largest: {shown}.", ordered


def _comparison(draws: Draws) -> Question:
    people = draws.some(NAMES, draws.integer(3, 5))  # the oldest first
    facts = [f"{a} is older than {b}." for a, b in itertools.pairwise(people)]
    text = " ".join(draws.shuffled(facts))
    if draws.one((True, False)):
        return f"{text} Who is the oldest?", people[0]
    return f"{text} Who is the youngest?", people[-1]


# Facts and conclusions about a, b and c: what follows, and beside it what does not follow
# from facts of the same form, so that no single word gives the answer away.
_FOLLOWS = (
    ("All {a} are {b}. All {b} are {c}.", "all {a} are {c}"),
    ("Some {a} are {b}. All {b} are {c}.", "some {a} are {c}"),
    ("All {a} are {b}. No {b} are {c}.", "no {a} are {c}"),
    ("Some {a} are {b}. No {b} are {c}.", "some {a} are not {c}"),
)
_DOES_NOT_FOLLOW = (
    ("All {a} are {b}. All {c} are {b}.", "all {a} are {c}"),
    ("Some {a} are {b}. All {c} are {b}.", "some {a} are {c}"),
    ("All {b} are {a}. No {b} are {c}.", "no {a} are {c}"),
    ("Some {a} are {b}. No {b} are {c}.", "some {c} are not {a}"),
)


def _syllogism(draws: Draws) -> Question:
    names = {name: f"{_made_up(draws, 2)}ns" for name in "abc"}
    forms, answer = draws.one(((_FOLLOWS, "yes"), (_DOES_NOT_FOLLOW, "no")))
    facts, conclusion = draws.one(forms)
    text = f"{facts} Does it follow that {conclusion}? Answer yes or no."
    return text.format(**names), answer


def _letter_count(draws: Draws) -> Question:
    word = _made_up(draws, draws.integer(3, 5))
    letter = draws.one(word)
    return f'How many times is the letter "{letter}" in "{word}"?', str(
        word.count(letter)
    )


def _backwards(draws: Draws) -> Question:
    word = _made_up(draws, draws.integer(2, 4))
    return f'Spell "{word}" backwards.', word[::-1]


def _last_letters(draws: Draws) -> Question:
    names = draws.some(NAMES, draws.integer(2, 4))
    text = f"Put the last letters of these names together: {', '.join(names)}."
    return text, "".join(name[-1] for name in names)


def _weekday(draws: Draws) -> Question:
    today, days = draws.integer(0, 6), draws.integer(2, 99)
    after = draws.one((True, False))
    when = f"will it be in {days} days" if after else f"was it {days} days ago"
    there = today + days if after else today - days
    return f"Today is {DAYS[today]}. What day {when}?", DAYS[there % 7]


def _coin(draws: Draws) -> Question:
    people = draws.some(NAMES, draws.integer(2, 5))
    flips = [draws.one((True, False)) for _ in people]
    told = " ".join(
        f"{name} {'turns' if turns else 'does not turn'} it over."
        for name, turns in zip(people, flips, strict=True)
    )
    answer = "no" if sum(flips) % 2 else "yes"
    return f"A coin shows heads. {told} Does it show heads? Answer yes or no.", answer


TASKS: dict[str, ReasoningTask] = {
    "arithmetic": ReasoningTask(_arithmetic, "number"),
    "word_problem": ReasoningTask(_word_problem, "number"),
    "sequence": ReasoningTask(_sequence, "number"),
    "sorting": ReasoningTask(_sorting, "numbers"),
    "comparison": ReasoningTask(_comparison, "word"),
    "syllogism": ReasoningTask(_syllogism, "yes_no"),
    "letter_count": ReasoningTask(_letter_count, "number"),
    "backwards": ReasoningTask(_backwards, "word"),
    "last_letters": ReasoningTask(_last_letters, "word"),
    "weekday": ReasoningTask(_weekday, "word"),
    "coin": ReasoningTask(_coin, "yes_no"),
}


def make_reasoning(
    size: int = 1000, tasks: Sequence[str] = tuple(TASKS), seed: int = 0
) -> Table:
    """Makes questions of several tasks, none of them twice.

    The n-th question of a task depends on the seed and the task alone.

    Args:
      size: questions of each task.
      tasks: keys of `TASKS`.
      seed: of the draws.

    Returns:
      A table of columns `prompt`, `answer` (object, str), `task` (str) and `split` (str:
      train, validation, test; by question), task by task.

    Raises:
      ValueError: an unknown task or one that is named twice, no task, a size below 1, or
        a task that has fewer different questions.

    Example:
      >>> table = make_reasoning(2, ["weekday", "coin"])
      >>> print(table["prompt"][0], table["answer"][0])
      Today is Saturday. What day will it be in 22 days? Sunday
    """
    if size < 1:
        raise ValueError(f"expected size >= 1, got size={size}")
    if not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(f"expected different tasks, at least one, got tasks={tasks}")
    questions = {task: _questions(task, size, seed) for task in tasks}
    rows = [(*pair, task) for task, pairs in questions.items() for pair in pairs]
    prompts, answers, of_tasks = (list(column) for column in zip(*rows, strict=True))
    columns = {
        "prompt": text_column(prompts),
        "answer": text_column(answers),
        "task": np.array(of_tasks),
        "split": splits_of(prompts),
    }
    content = "\0".join("\1".join(row) for row in rows).encode()
    provenance = {
        "name": "reasoning",
        "kind": "synthetic",
        "citation": f"fedjax_fm.datasets.make_reasoning(size={size}, seed={seed})",
        "licence": "Apache-2.0",
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": len(rows),
        "dropped": {},
    }
    return Table(columns, provenance)


def _questions(task: str, size: int, seed: int) -> list[Question]:
    """Different questions of one task."""
    make, draws = _task(task).make, Draws(f"{seed}/{task}")
    found: dict[str, str] = {}
    for _ in range(_TRIES * size):
        prompt, answer = make(draws)
        found.setdefault(prompt, answer)
        if len(found) == size:
            return list(found.items())
    raise ValueError(
        f"task {task!r} gave {len(found)} different questions in {_TRIES * size} draws, "
        f"expected size={size}; ask for fewer"
    )


def _task(name: str) -> ReasoningTask:
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}, expected one of {list(TASKS)}")
    return TASKS[name]


def check(task: str, answer_text: str, expected: str) -> Checked:
    """Compares an answer with the expected one, strictly.

    White space around it and one full stop behind it are taken away; what is left must
    be an answer of the task's kind and nothing else. Upper and lower case are the same,
    "+7" is 7, "1,2" is "1, 2". A sentence around the answer is unparsable, even if the
    answer is in it: count those beside the wrong ones.

    Args:
      task: a key of `TASKS`.
      answer_text: what somebody answered.
      expected: the `answer` of the table.

    Returns:
      Whether it is right, and whether it could be read.

    Raises:
      ValueError: an unknown task, or an expected answer that is none of its kind.

    Example:
      >>> check("arithmetic", " 12.", "12")
      Checked(is_right=True, is_parsed=True)
      >>> check("arithmetic", "It is 12", "12")
      Checked(is_right=False, is_parsed=False)
    """
    kind = KINDS[_task(task).kind]
    right = _parsed(kind, expected)
    if right is None:
        raise ValueError(f"expected {kind.name} as expected, got expected={expected!r}")
    found = _parsed(kind, answer_text)
    return Checked(is_right=found == right, is_parsed=found is not None)


def _parsed(kind: Kind, text: str) -> object | None:
    """The value of an answer; None where it is none of its kind."""
    stripped = text.strip().removesuffix(".").rstrip()
    if not kind.pattern.fullmatch(stripped):
        return None
    return kind.read(stripped)


def score(table: Table, answers: Sequence[str]) -> Mapping[str, dict[str, float]]:
    """Shares of right and of unparsable answers, for each task.

    Args:
      table: of `make_reasoning`, or rows of it.
      answers: one a row.

    Returns:
      {task: {"right": share of its rows, "unparsable": share of its rows}}.

    Raises:
      ValueError: not as many answers as rows.

    Example:
      >>> table = make_reasoning(4, ["coin"])
      >>> score(table, table["answer"])
      {'coin': {'right': 1.0, 'unparsable': 0.0}}
    """
    if len(answers) != len(table):
        raise ValueError(f"expected {len(table)} answers, got {len(answers)}")
    found: dict[str, list[Checked]] = {}
    for row, answer in enumerate(answers):
        task, expected = str(table["task"][row]), table["answer"][row]
        found.setdefault(task, []).append(check(task, answer, expected))
    return {
        task: {
            "right": sum(one.is_right for one in rows) / len(rows),
            "unparsable": sum(not one.is_parsed for one in rows) / len(rows),
        }
        for task, rows in found.items()
    }
