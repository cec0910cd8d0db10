"""The tables of the page, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from fedjax_fm.experiments.readiness.cells import FEATURES, Cell, Framework
from fedjax_fm.experiments.readiness.ours import Own, Run

NAME = "fedjax_fm"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    Args:
      head: names of the columns.
      rows: as many cells each.
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def matrix(
    frameworks: Sequence[Framework], own: Mapping[str, Own], run: Run | None
) -> str:
    """One row a feature, one column a framework, ours last.

    Args:
      frameworks: the other columns.
      own: our column, by feature.
      run: of our tests; None if they were not run.
    """
    head = ("feature", *(one.name for one in frameworks), NAME)
    rows = [
        (name, *(one.cells[name].verdict for one in frameworks), _ours(own[name], run))
        for name in FEATURES
    ]
    return table(head, rows)


def features(own: Mapping[str, Own], run: Run | None) -> str:
    """What counts as each feature, and our tests of it.

    Args:
      own: our column, by feature.
      run: of our tests; None if they were not run.
    """
    when = "Our tests were not run for this page."
    if run is not None:
        when = f"Our tests were run on {run.date} at commit `{run.commit}`."
    rows = [
        (name, means, _named(own[name].test), _ours(own[name], run), own[name].note)
        for name, means in FEATURES.items()
    ]
    head = ("feature", "what counts", f"test of {NAME}", "outcome", "note")
    return f"{when}\n\n{table(head, rows)}"


def sources(frameworks: Sequence[Framework]) -> str:
    """A table for each framework: where each cell was seen.

    Args:
      frameworks: the columns.
    """
    parts = [f"### {one.name}\n\n{_sources_of(one)}" for one in frameworks]
    return "\n\n".join(parts)


def _sources_of(framework: Framework) -> str:
    rows = [
        (name, cell.verdict, _places(cell), f"{cell.date}", cell.note)
        for name, cell in framework.cells.items()
    ]
    return table(("feature", "verdict", "seen or looked in", "date", "note"), rows)


def _places(cell: Cell) -> str:
    """Its sources, addresses as links that say what file they are."""
    return "; ".join(map(_link, cell.source))


def _link(source: str) -> str:
    if not source.startswith("https://"):
        return source
    _, is_file, file = source.partition("/blob/")
    commit, _, path = file.partition("/")
    words = f"{path} at {commit[:9]}" if is_file else source.removeprefix("https://")
    return f"[{words.replace('%20', ' ')}]({source})"


def _named(test: str) -> str:
    return f"`{test}`" if test else ""


def _ours(own: Own, run: Run | None) -> str:
    """Our cell: yes if its test passed and not otherwise."""
    if not own.test:
        return "none"
    if run is None:
        return "not run"
    outcome = run.outcomes[own.test]
    return "yes" if outcome == "passed" else f"**{outcome}**"
