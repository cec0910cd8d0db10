"""Questions that are solved again from their text, in another way, and a strict checker."""

import datetime
import itertools
import re

import pytest

from fedjax_fm.datasets import make_reasoning, split_of
from fedjax_fm.datasets.reasoning import TASKS, check, score

SIZE = 400


@pytest.fixture(scope="module")
def table():
    return make_reasoning(SIZE)


def arithmetic(prompt):
    expression = prompt.removeprefix("What is ").removesuffix("?")
    assert re.fullmatch(r"[0-9+*() -]+", expression)
    return str(eval(expression))


def word_problem(prompt):
    first, given, bought = map(int, re.findall(r"\d+", prompt))
    shelf = ["thing"] * first
    del shelf[:given]
    return str(len(shelf + ["new"] * bought))


def sequence(prompt):
    numbers = [int(x) for x in re.findall(r"-?\d+", prompt)]
    assert len({b - a for a, b in itertools.pairwise(numbers)}) == 1
    return str(2 * numbers[-1] - numbers[-2])


def sorting(prompt):
    numbers = [int(x) for x in re.findall(r"\d+", prompt)]
    ordered = []
    while numbers:
        ordered.append(numbers.pop(numbers.index(min(numbers))))
    return ", ".join(map(str, ordered))


def comparison(prompt):
    facts = re.findall(r"(\w+) is older than (\w+)", prompt)
    people = {name for fact in facts for name in fact}
    # the one order of all people in which every fact holds
    (order,) = [
        order
        for order in itertools.permutations(people)
        if all(order.index(a) < order.index(b) for a, b in facts)
    ]
    return order[0] if "oldest" in prompt else order[-1]


def holds(statement, world, names):
    """Whether a statement is true in a world: a set of kinds of things, by membership."""
    kind, first, is_not, second = re.fullmatch(
        r"(all|some|no) (\w+) are (not )?(\w+)", statement
    ).groups()
    a, b = names.index(first), names.index(second)
    both = any(thing[a] and thing[b] for thing in world)
    only = any(thing[a] and not thing[b] for thing in world)
    if kind == "all":
        return not only
    if kind == "no":
        return not both
    return only if is_not else both


def syllogism(prompt):
    facts, conclusion = prompt.split(" Does it follow that ")
    conclusion = conclusion.partition("?")[0]
    facts = [fact.strip().lower() for fact in facts.rstrip(".").split(".")]
    names = sorted(set(re.findall(r"\w+ns\b", prompt)))
    things = list(itertools.product((False, True), repeat=3))
    worlds = itertools.chain.from_iterable(
        itertools.combinations(things, size) for size in range(9)
    )
    follows = all(
        holds(conclusion, world, names)
        for world in worlds
        if all(holds(fact, world, names) for fact in facts)
    )
    return "yes" if follows else "no"


def letter_count(prompt):
    letter, word = re.findall(r'"(\w+)"', prompt)
    return str(sum(sign == letter for sign in word))


def backwards(prompt):
    (word,) = re.findall(r'"(\w+)"', prompt)
    return "".join(reversed(word))


def last_letters(prompt):
    names = prompt.partition(": ")[2].rstrip(".").split(", ")
    return "".join(name[len(name) - 1] for name in names)


def weekday(prompt):
    today = re.search(r"Today is (\w+)", prompt)[1]
    days = int(re.search(r"(\d+) days", prompt)[1])
    date = datetime.date(2024, 1, 1)
    while date.strftime("%A") != today:
        date += datetime.timedelta(1)
    date += datetime.timedelta(-days if " ago" in prompt else days)
    return date.strftime("%A")


def coin(prompt):
    heads = True
    for does in re.findall(r"(turns|does not turn) it over", prompt):
        heads ^= does == "turns"
    return "yes" if heads else "no"


SOLVERS = {
    solver.__name__: solver
    for solver in (
        arithmetic, word_problem, sequence, sorting, comparison, syllogism, letter_count,
        backwards, last_letters, weekday, coin,
    )
}  # fmt: skip


def rows_of(table, task):
    return [row for row in range(len(table)) if table["task"][row] == task]


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right(table, task):
    rows = rows_of(table, task)
    assert len(rows) == SIZE
    for row in rows:
        prompt, answer = table["prompt"][row], table["answer"][row]
        assert SOLVERS[task](prompt) == answer, prompt
        assert check(task, f" {answer.upper()}.\n", answer).is_right


@pytest.mark.parametrize("task", ["syllogism", "coin"])
def test_yes_and_no_are_even_and_no_word_gives_it_away(task):
    table = make_reasoning(2000, [task])
    answers = table["answer"] == "yes"
    assert abs(answers.mean() - 0.5) < 0.05
    if task == "syllogism":  # the form of the facts alone says nothing
        kinds = {}
        for prompt, answer in zip(table["prompt"], answers, strict=True):
            words = tuple(re.findall(r"\b(all|some|no|not)\b", prompt.lower()))
            kinds.setdefault(words[:-1], []).append(answer)
        assert all(0.4 < sum(found) / len(found) < 0.6 for found in kinds.values())


def test_questions_differ_and_a_split_is_of_a_question(table):
    assert len(set(table["prompt"])) == len(table)
    assert table["split"].tolist() == [split_of(prompt) for prompt in table["prompt"]]
    assert set(table["split"].tolist()) == {"train", "validation", "test"}


def test_questions_depend_on_the_seed_and_the_task_alone(table):
    again = make_reasoning(SIZE)
    assert again.provenance == table.provenance
    few = make_reasoning(10, ["coin", "sorting"])
    first = [table["prompt"][row] for row in rows_of(table, "coin")[:10]]
    assert few["prompt"][:10].tolist() == first
    other = make_reasoning(SIZE, seed=1)
    assert other.provenance["sha256"] != table.provenance["sha256"]


RIGHT = [
    ("arithmetic", "12", "12"), ("arithmetic", "+12.", "12"), ("arithmetic", " -3 ", "-3"),
    ("sorting", "1,2 , 3.", "1, 2, 3"), ("weekday", "monday", "Monday"),
    ("coin", "YES.", "yes"), ("backwards", "Dog", "dog"),
]  # fmt: skip
WRONG = [
    ("arithmetic", "13", "12"), ("sorting", "1, 3, 2", "1, 2, 3"), ("sorting", "1, 2", "1, 2, 3"),
    ("weekday", "Someday", "Monday"), ("coin", "no", "yes"),
]  # fmt: skip
UNPARSABLE = [
    ("arithmetic", "It is 12", "12"), ("arithmetic", "12.0", "12"), ("arithmetic", "", "12"),
    ("arithmetic", "12 12", "12"), ("arithmetic", "१२", "12"), ("arithmetic", "12..", "12"),
    ("sorting", "1 2 3", "1, 2, 3"), ("sorting", "[1, 2, 3]", "1, 2, 3"), ("sorting", "1, 2,", "1, 2"),
    ("weekday", "a Monday", "Monday"), ("coin", "maybe", "yes"), ("coin", "yes, no", "yes"),
    ("backwards", "d o g", "dog"), ("backwards", '"dog"', "dog"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "verdict"),
    [(case, (True, True)) for case in RIGHT]
    + [(case, (False, True)) for case in WRONG]
    + [(case, (False, False)) for case in UNPARSABLE],
)
def test_answers_are_read_strictly(case, verdict):
    assert check(*case) == verdict


def test_shares_of_right_and_unparsable_answers(table):
    rows = rows_of(table, "coin")[:4] + rows_of(table, "sorting")[:2]
    some = table.select(rows)
    answers = some["answer"].tolist()
    answers[0] = "who knows"
    answers[1] = {"yes": "no", "no": "yes"}[answers[1]]
    assert score(some, answers) == {
        "coin": {"right": 0.5, "unparsable": 0.25},
        "sorting": {"right": 1.0, "unparsable": 0.0},
    }
    with pytest.raises(ValueError, match="expected 6 answers, got 5"):
        score(some, answers[:5])


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="unknown task 'sums', expected one of"):
        make_reasoning(2, ["sums"])
    with pytest.raises(ValueError, match="expected size >= 1, got size=0"):
        make_reasoning(0)
    for tasks in ([], ["coin", "coin"]):
        with pytest.raises(ValueError, match="expected different tasks"):
            make_reasoning(2, tasks)
    with pytest.raises(
        ValueError, match="task 'weekday' gave 1372 different questions"
    ):
        make_reasoning(1373, ["weekday"])
    with pytest.raises(
        ValueError, match="expected one whole number in digits as expected"
    ):
        check("arithmetic", "1", "one")
