"""What `fedjax-fm` does with studies: finds, runs, tunes, reports and compares them."""

import ast
import dataclasses
import importlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import nearest, override, replace, restored
from fedjax_fm.study.shape import Study

if TYPE_CHECKING:
    from rich.console import Console

    from fedjax_fm.runs.folder import RunFolder


def summaries() -> dict[str, str]:
    """{name: first line of its docstring} of every study.

    Nothing is imported, so it takes no time.
    """
    package = importlib.import_module("fedjax_fm.experiments")
    found = {}
    for folder in package.__path__:
        for path in [*Path(folder).glob("*.py"), *Path(folder).glob("*/__init__.py")]:
            name = path.parent.name if path.name == "__init__.py" else path.stem
            text = path.read_text(encoding="utf-8")
            if name.startswith("__") or "STUDY" not in text:
                continue
            tree = ast.parse(text)
            if any(_defines_study(statement) for statement in tree.body):
                found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return dict(sorted(found.items()))


def _defines_study(statement: ast.stmt) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return any(
        isinstance(target, ast.Name) and target.id == "STUDY" for target in targets
    )


def find(name: str) -> Study:
    """The study of that name.

    Raises:
      UsageError: there is none; names the nearest one.
    """
    known = summaries()
    if name not in known:
        raise UsageError(nearest(name, known, "study"))
    return importlib.import_module(f"fedjax_fm.experiments.{name}").STUDY


def settings(
    study: Study, smoke: bool, full: bool, pairs: Sequence[str], file: Path | None
) -> Any:
    """The configuration as the command line has it: first the size, then the file, then --set.

    Args:
      study: whose.
      smoke, full: its small and its whole form.
      pairs: "key=value".
      file: TOML with settings.
    """
    if smoke and full:
        raise UsageError("--smoke and --full exclude each other")
    config = study.config()
    if full and not hasattr(config, "full"):
        raise UsageError("this study has no longer form: leave out --full")
    config = config.smoke() if smoke else config.full() if full else config
    if file is not None:
        config = replace(config, **_from_toml(type(config), file))
    return override(config, pairs)


def _from_toml(kind: type, file: Path) -> dict[str, Any]:
    """Settings of a TOML file, of the fields' types."""
    try:
        fields = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error
    known = {field.name for field in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise UsageError(f"{file}: {nearest(name, known, 'setting')}")
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }


def begin(
    name: str, study: Study, config: Any, place: Path, command: str
) -> "RunFolder":
    """A new folder that says what it is to hold."""
    from fedjax_fm.runs.folder import RunFolder
    from fedjax_fm.runs.provenance import environment
    from fedjax_fm.study import cells

    cells.check(study, config)
    folder = RunFolder.create(place, dataclasses.asdict(config), name)
    folder.write_json("provenance.json", environment())
    cells.begin(name, config, folder, command)
    return folder


def reopened(folder: "RunFolder") -> tuple[Study, Any]:
    """(study, configuration) of a folder that was begun before."""
    fields = dict(folder.config)
    study = find(fields.pop("experiment"))
    return study, restored(
        study.config, _tuples(fields), str(folder.path / "config.json")
    )


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {name: _tuple(value) for name, value in fields.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def go(
    folder: "RunFolder",
    study: Study,
    config: Any,
    console: "Console",
    *,
    only_tuning: bool = False,
) -> None:
    """Computes what is missing, and writes the results and the pages."""
    from fedjax_fm.study.cells import Cells, all_seeds
    from fedjax_fm.study.results import assemble

    cells = Cells(study, config, folder, console)
    cells.tune()
    if only_tuning:
        show_tuning(cells, console)
        return
    cells.run(all_seeds(folder))
    folder.write_json("results.json", assemble(cells))
    write_pages(folder)


def write_pages(folder: "RunFolder") -> Path:
    """RESULTS.md and report.html, from results.json alone; the path of the latter."""
    from fedjax_fm.study import markdown, page, results

    found = results.read(folder)
    folder.write_text("RESULTS.md", markdown.write(found))
    return folder.write_text("report.html", page.write(found))


def show_tuning(cells: Any, console: "Console") -> None:
    """A line for each point of each grid, the best one marked, and edges."""
    from fedjax_fm.runs.terminal import say
    from fedjax_fm.study.cells import best_of, is_edge

    score = cells.study.primary
    for arm in cells.study.arms:
        found = cells.tuning_of(arm) if not arm.like else []
        best = best_of([value for _, value in found], score)
        edges = is_edge([point for point, _ in found], best) if best is not None else []
        for number, (point, value) in enumerate(found):
            shown = (
                "failed"
                if value is None
                else f"{score.scale * value:.{score.digits}f} {score.unit}".strip()
            )
            mark = " <- chosen" if number == best else ""
            if number == best and edges:
                mark += f", at the edge of {', '.join(edges)}: a better value may lie outside"
            text = ", ".join(f"{name} {setting}" for name, setting in point.items())
            say(console, f"{arm.title}: {text}: {shown}{mark}")


def compare(first: "RunFolder", second: "RunFolder") -> list[str]:
    """Lines that compare the arms of two folders of one study, paired by seed.

    Raises:
      UsageError: of other studies, or without a seed or an arm in common.
    """
    import numpy as np

    from fedjax_fm.evaluation.intervals import holm, paired_seeds
    from fedjax_fm.study import results

    a, b = results.read(first), results.read(second)
    if a.raw["study"] != b.raw["study"]:
        raise UsageError(
            f"these are of other studies: {a.raw['study']} and {b.raw['study']}"
        )
    seeds = [[one["seed"] for one in found.runs(found.arms[0])] for found in (a, b)]
    common = [seed for seed in seeds[0] if seed in seeds[1]]
    arms = [arm for arm in a.arms if arm in b.arms]
    if not common or not arms:
        raise UsageError(
            f"nothing to compare: seeds {seeds[0]} and {seeds[1]}, {len(arms)} arms in common"
        )
    score, found, lines = a.primary, {}, []
    sign = 1.0 if score.highest else -1.0
    for arm in arms:
        values = [
            np.array([one.values(arm)[place.index(seed)] for seed in common])
            for one, place in zip((a, b), seeds, strict=True)
        ]
        if np.isnan(values).any():
            lines.append(f"{a.label(arm)}: a run failed")
        else:
            found[arm] = paired_seeds(sign * values[1], sign * values[0])
    differing = {
        name
        for name in a.raw["config"]
        if a.raw["config"][name] != b.raw["config"].get(name)
    }
    lines.append(
        f"settings that differ: {', '.join(sorted(differing)) or 'none'}; seeds in common: {common}"
    )
    for arm, one in (holm(found) if found else {}).items():
        low, high = (one.low, one.high) if score.highest else (-one.high, -one.low)
        numbers = [score.scale * value for value in (sign * one.difference, low, high)]
        shown = "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*numbers, d=score.digits)
        lines.append(f"{a.label(arm)}: {shown} {score.difference_unit}: {one.verdict}")
    return lines
