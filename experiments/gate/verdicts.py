"""One table of all tasks that went through a gate, from their results.json alone.

    python -m fedjax_fm.experiments.gate.verdicts            # prints it
    python -m fedjax_fm.experiments.gate.verdicts PAGE       # writes it into a page

In a page it stands between two comments, `<!-- gate -->` and `<!-- end of gate -->`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_fm.evaluation.intervals import plus_minus
from fedjax_fm.experiments import gate, gate_language
from fedjax_fm.experiments.gate.tasks import TASKS
from fedjax_fm.study.results import Results, Verdict

RESULTS = Path(__file__).parent / "results"  # a folder a task
BEGIN, END = "<!-- gate -->", "<!-- end of gate -->"
HEAD = (
    "task", "kind", "model", "head, or zero-shot", "LoRA", "full tuning",
    "LoRA brings", "full tuning brings", "verdict",
)  # fmt: skip


class Judged(NamedTuple):
    """A task that went through a gate.

    Attributes:
      name: of the task.
      kind: of `gate.tasks`, or "generation".
      model: that was tuned.
      margin: what tuning has to bring, in the unit of the score.
      results: of its study.
    """

    name: str
    kind: str
    model: str
    margin: float
    results: Results

    @property
    def has_passed(self) -> bool:
        """Whether LoRA or full tuning wins by the margin, and the control fails."""
        wins = [self.wins(verdict) for verdict in self.results.verdicts()]
        return any(wins) and self.results.is_sound

    def wins(self, verdict: Verdict) -> bool:
        """Whether a comparison reaches the margin with its interval above zero.

        Args:
          verdict: of three seeds or more; of fewer there is no interval.
        """
        found = verdict.found
        if found is None or found.pairs < 3:
            return False
        gain = self.results.primary.scale * found.difference
        return gain >= self.margin and found.low > 0


def judged(raw: dict) -> Judged:
    """A task's verdict.

    Args:
      raw: the contents of a results.json.

    Returns:
      The task, with its kind, its model and its margin.

    Raises:
      ValueError: of another study, or of a task that there is no longer.
    """
    name, study = raw["config"]["task"], raw["study"]
    if study == "gate_language" and name in gate_language.TASKS:
        kind, model, margin = "generation", raw["config"]["model"], gate_language.MARGIN
    elif study == "gate" and name in TASKS:
        kind, model, margin = TASKS[name].kind, TASKS[name].model, gate.MARGIN
    else:
        raise ValueError(f"expected a task of a gate, got {name!r} of {study!r}")
    return Judged(
        name=name,
        kind=kind,
        model=model.rpartition("/")[2],
        margin=margin,
        results=Results(raw),
    )


def stored(folder: Path = RESULTS) -> list[Judged]:
    """All tasks whose results are stored, kind by kind.

    Args:
      folder: with a folder of each task.
    """
    paths = sorted(folder.glob("*/results.json"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    found = [judged(json.loads(text)) for text in texts]
    return sorted(found, key=_place)


def _place(one: Judged) -> tuple[str, str]:
    return one.kind, one.name


def table(found: Sequence[Judged]) -> str:
    """The table as Markdown, and a sentence that counts.

    Args:
      found: tasks, in the order of the rows.
    """
    rows = [HEAD, ["---"] * len(HEAD), *(_row(one) for one in found)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    passed = [one for one in found if one.has_passed]
    kinds = sorted({one.kind for one in passed})
    counted = f"Passed: {len(passed)} of {len(found)} tasks"
    return "\n".join([*lines, "", f"{counted}; kinds: {', '.join(kinds) or 'none'}."])


def _row(one: Judged) -> list[str]:
    """The cells of a task."""
    results, score = one.results, one.results.primary
    scores = []
    for arm in results.arms[:3]:
        shown = plus_minus(results.values(arm), scale=score.scale, digits=score.digits)
        scores.append(f"{shown} {score.unit}")
    gains = [results.difference(verdict) for verdict in results.verdicts()]
    word = "passed" if one.has_passed else "**FAILED**"
    if not results.is_sound:
        word += ", its control does not fail"
    return [f"`{one.name}`", one.kind, one.model, *scores, *gains, word]


def written(page: str, text: str) -> str:
    """A page with the table between its two comments.

    Args:
      page: Markdown.
      text: the table.

    Raises:
      ValueError: the page has no such comments.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN} and {END} in the page")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    """Prints the table, or writes it into a page.

    Args:
      arguments: of the command line.
    """
    text = table(stored())
    if not arguments:
        print(text)
        return
    page = Path(arguments[0])
    filled = written(page.read_text(encoding="utf-8"), text)
    page.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
