"""Mixtures of tasks in FLAN's format: several patterns a task, and how often each comes.

References:
  Longpre, Hou, Vu, Webson, Chung, Tay, Zhou, Le, Zoph, Wei, Roberts (2023). The Flan
  Collection. arXiv 2301.13688.
  Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu (2019). Exploring the
  Limits of Transfer Learning with a Unified Text-to-Text Transformer. arXiv 1910.10683,
  section 3.5.2.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_fm import checks

Row = Mapping[str, str]


class Pattern(NamedTuple):
    """How a row becomes what is asked and what is answered.

    Fields of a row stand in braces; braces of the text itself are doubled.

    Attributes:
      inputs: what is asked, for example "Is this about sport? {text}".
      targets: the answer, for example "{answer}". A pattern that asks for what others
        give is FLAN's input inversion: "Write something about {topic}." and "{text}".
    """

    inputs: str
    targets: str

    def of(self, row: Row) -> tuple[str, str]:
        """(inputs, targets) of a row.

        Args:
          row: with all fields of the pattern.

        Raises:
          ValueError: the row has no such field.

        Example:
          >>> Pattern("{a} + {b} =", "{c}").of({"a": "1", "b": "2", "c": "3"})
          ('1 + 2 =', '3')
        """
        try:
            return self.inputs.format_map(row), self.targets.format_map(row)
        except KeyError as error:
            raise ValueError(
                f"the pattern {self.inputs!r} -> {self.targets!r} needs the field "
                f"{error}; the row has {', '.join(sorted(row))}"
            ) from error


class TextTask(NamedTuple):
    """A task: its rows, and the ways to ask for them.

    Attributes:
      name: of the task.
      rows: {field: text} each.
      patterns: at least one; FLAN has ten for most tasks.
    """

    name: str
    rows: Sequence[Row]
    patterns: Sequence[Pattern]


class Example(NamedTuple):
    """A row in FLAN's format.

    Attributes:
      inputs: what the model reads.
      targets: what it is to write.
      task: whose it is.
    """

    inputs: str
    targets: str
    task: str


def mixing_rates(
    sizes: Sequence[int], *, maximum: int | None = None, temperature: float = 1.0
) -> np.ndarray:
    """How often each task is drawn, by its number of examples.

        r_m = min(e_m, K)^(1 / T) / sum_n min(e_n, K)^(1 / T)

    With neither it is proportional to the examples; a maximum of 1 or a high temperature
    draws all tasks alike.

    Args:
      sizes: e_m, examples of each task, at least 1.
      maximum: K, beyond which a task counts no more, 3,000 in FLAN; None: none.
      temperature: T, at least 1.

    Returns:
      f64[M], of sum one.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds, or there is
        no task.

    References:
      Raffel et al. 2019, arXiv 1910.10683, section 3.5.2: "examples-proportional" and
      "temperature-scaled" mixing.

    Example:
      >>> mixing_rates([100, 300, 5000], maximum=400).tolist()
      [0.125, 0.375, 0.5]
    """
    counts = [checks.whole("sizes", size, least=1) for size in sizes]
    if not counts:
        raise ValueError("expected the sizes of one task at least, got sizes=[]")
    if maximum is not None:
        checks.whole("maximum", maximum, least=1)
        counts = [min(count, maximum) for count in counts]
    checks.real("temperature", temperature, least=1)
    # From the largest down, so that high powers of large numbers do not overflow.
    shares = (np.array(counts) / max(counts)) ** (1 / temperature)
    return shares / shares.sum()


def mix_counts(rates: Sequence[float], examples: int) -> np.ndarray:
    """How many of some examples each task has, by the largest remainders.

    Args:
      rates: of `mixing_rates`.
      examples: of all tasks together.

    Returns:
      i64[M], of sum `examples`; each is its share, rounded down or up.

    Raises:
      TypeError, ValueError: the rates are no shares, or examples no whole number.

    Example:
      >>> mix_counts([0.125, 0.375, 0.5], 10).tolist()
      [1, 4, 5]
    """
    checks.whole("examples", examples, least=0)
    shares = np.asarray(rates, np.float64)
    if shares.ndim != 1 or np.any(shares < 0) or not np.isclose(shares.sum(), 1):
        raise ValueError(
            f"expected rates of sum one, none below zero, got rates={list(rates)}"
        )
    exact = shares * examples
    counts = np.floor(exact).astype(np.int64)
    # Of equal remainders the first task is served first.
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: examples - counts.sum()]] += 1
    return counts


def flan_examples(
    task: TextTask,
    examples: int | None = None,
    *,
    few_shot: float = 0.0,
    shots: int = 2,
    seed: int = 0,
) -> list[Example]:
    """Rows of a task in FLAN's format, each by a pattern that is drawn for it.

    Rows are drawn without one coming twice before all have come once. Some are preceded
    by other rows of the task, asked by the same pattern and answered.

    Args:
      task: the task.
      examples: how many; None: all rows once.
      few_shot: share of the examples that have others before them, 0 <= share <= 1.
      shots: how many others.
      seed: of the draws.

    Returns:
      The examples.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds, a task
        without rows or patterns, or with too few rows for the shots; a row that lacks a
        field.

    References:
      Longpre et al. 2023, arXiv 2301.13688, section 3: several templates, zero-shot and
      few-shot prompts mixed.

    Example:
      >>> rows = [{"word": "dog", "many": "dogs"}]
      >>> task = TextTask("plural", rows, [Pattern("Plural of {word}?", "{many}")])
      >>> flan_examples(task)
      [Example(inputs='Plural of dog?', targets='dogs', task='plural')]
    """
    checks.real("few_shot", few_shot, least=0, most=1)
    checks.whole("shots", shots, least=1)
    checks.whole("seed", seed, least=0)
    n_rows = _check(task, shots if few_shot else 0)
    wanted = n_rows if examples is None else checks.whole("examples", examples, least=0)
    rng = np.random.default_rng([seed, *task.name.encode("utf-8")])
    found = []
    for number in _without_repeats(n_rows, wanted, rng).tolist():
        pattern = task.patterns[int(rng.integers(len(task.patterns)))]
        before = ""
        if rng.random() < few_shot:
            others = np.delete(np.arange(n_rows), number)
            for other in rng.choice(others, shots, replace=False).tolist():
                asked, answered = pattern.of(task.rows[other])
                before += f"{asked}\n{answered}\n\n"
        inputs, targets = pattern.of(task.rows[number])
        found.append(Example(before + inputs, targets, task.name))
    return found


def flan_mixture(
    tasks: Sequence[TextTask],
    examples: int,
    *,
    maximum: int | None = None,
    temperature: float = 1.0,
    few_shot: float = 0.0,
    shots: int = 2,
    seed: int = 0,
) -> dict[str, list[Example]]:
    """A mixture of tasks, by task: a client each, or shuffled together for one.

    Args:
      tasks: of different names.
      examples: of all tasks together.
      maximum: as of `mixing_rates`.
      temperature: as of `mixing_rates`.
      few_shot: as of `flan_examples`.
      shots: as of `flan_examples`.
      seed: of the draws; a task's own draws do not depend on the other tasks.

    Returns:
      {task: its examples}, as many as `mix_counts` gives it.

    Raises:
      TypeError, ValueError: as of `mixing_rates` and `flan_examples`, or two tasks of
        one name.

    Example:
      >>> pattern = [Pattern("{a}?", "{a}!")]
      >>> tasks = [TextTask(name, [{"a": name}] * n, pattern) for name, n in (("x", 1), ("y", 9))]
      >>> mixture = flan_mixture(tasks, 8, maximum=3)
      >>> {name: len(found) for name, found in mixture.items()}
      {'x': 2, 'y': 6}
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"expected tasks of different names, got {names}")
    sizes = [len(task.rows) for task in tasks]
    rates = mixing_rates(sizes, maximum=maximum, temperature=temperature)
    counts = mix_counts(rates.tolist(), examples)
    how = {"few_shot": few_shot, "shots": shots, "seed": seed}
    return {
        task.name: flan_examples(task, int(count), **how)
        for task, count in zip(tasks, counts, strict=True)
    }


def _check(task: TextTask, shots: int) -> int:
    """The number of rows, if there are enough, and a pattern."""
    if not task.patterns:
        raise ValueError(
            f"expected a pattern at least, the task {task.name!r} has none"
        )
    if len(task.rows) < 1 + shots:
        raise ValueError(
            f"expected {1 + shots} rows at least with shots={shots}, the task "
            f"{task.name!r} has {len(task.rows)}"
        )
    return len(task.rows)


def _without_repeats(n_rows: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of rows, pass after pass in a new order each."""
    passes = [rng.permutation(n_rows) for _ in range(-(-wanted // n_rows))]
    return np.concatenate([np.zeros(0, np.int64), *passes])[:wanted]
