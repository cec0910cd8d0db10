"""What the command `fedjax-fm` does with studies.

It finds, runs, tunes, reports and compares them.
"""

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
    """All studies, found by reading their files; none is imported.

    Returns:
      {name: first line of its docstring}.
    """
    package = importlib.import_module("fedjax_fm.experiments")
    found = {}
    for folder in package.__path__:
        here = Path(folder)
        modules, packages = here.glob("*.py"), here.glob("*/__init__.py")
        for path in [*modules, *packages]:
            name = path.parent.name if path.name == "__init__.py" else path.stem
            text = path.read_text(encoding="utf-8")
            if name.startswith("__") or "STUDY" not in text:
                continue
            tree = ast.parse(text)
            if any(_defines_study(statement) for statement in tree.body):
                docstring = ast.get_docstring(tree) or ""
                found[name] = docstring.partition("\n")[0]
    return {name: found[name] for name in sorted(found)}


def _defines_study(statement: ast.stmt) -> bool:
    """Whether the statement is `STUDY = …`."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return "STUDY" in names


def find(name: str) -> Study:
    """Imports a study.

    Args:
      name: of a module of `fedjax_fm.experiments`.

    Returns:
      Its `STUDY`.

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
    """The configuration that a command line asks for.

    The size comes first, then the file changes settings, then `--set` does.

    Args:
      study: whose.
      smoke: its small form.
      full: its whole form.
      pairs: "key=value".
      file: TOML with settings.

    Returns:
      A configuration of `study.config`.

    Raises:
      UsageError: sizes that exclude each other, a file that cannot be read, an unknown
        setting or a value that makes no sense.
    """
    if smoke and full:
        raise UsageError("--smoke and --full exclude each other")
    config = study.config()
    if full and not hasattr(config, "full"):
        raise UsageError("this study has no longer form: leave out --full")
    if smoke:
        config = config.smoke()
    elif full:
        config = config.full()
    if file is not None:
        changes = _from_toml(study.config, file)
        config = replace(config, **changes)
    return override(config, pairs)


def _from_toml(kind: type, file: Path) -> dict[str, Any]:
    """Settings of a TOML file; lists become tuples."""
    try:
        text = file.read_text(encoding="utf-8")
        fields = tomllib.loads(text)
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
    """Makes the folder of a study, before anything is computed.

    Args:
      name: of the study.
      study: that is run.
      config: its settings.
      place: of the folder.
      command: that was typed, for the report.

    Returns:
      The folder, with config.json, provenance.json and study.json.

    Raises:
      UsageError: settings that make no sense.
      RunFolderError: the folder exists, or cannot be made.
    """
    from fedjax_fm.runs.folder import RunFolder
    from fedjax_fm.runs.provenance import environment
    from fedjax_fm.study import cells

    cells.check(study, config)
    folder = RunFolder.create(place, dataclasses.asdict(config), name)
    folder.write_json("provenance.json", environment())
    cells.begin(name, config, folder, command)
    return folder


def reopened(folder: "RunFolder") -> tuple[Study, Any]:
    """Study and configuration of a folder that was begun before.

    Args:
      folder: with a config.json.

    Returns:
      (study, configuration).

    Raises:
      UsageError: there is no such study, or the configuration is not one of it.
      RunFolderError: config.json is damaged.
    """
    fields = dict(folder.config)
    study = find(fields.pop("experiment"))
    where = str(folder.path / "config.json")
    return study, restored(study.config, _tuples(fields), where)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with tuples where JSON has lists."""
    return {name: _tuple(value) for name, value in fields.items()}


def _tuple(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuple(part) for part in value)
    return value


def go(
    folder: "RunFolder",
    study: Study,
    config: Any,
    console: "Console",
    *,
    only_tuning: bool = False,
) -> None:
    """Computes what is missing, and writes the results and the pages.

    Args:
      folder: of the study.
      study: that is run.
      config: its settings.
      console: where progress is shown.
      only_tuning: computes and shows the grids alone.

    Raises:
      RunFolderError: another process is at work in the folder.
    """
    from fedjax_fm.runs.lock import held
    from fedjax_fm.study.cells import Cells, all_seeds
    from fedjax_fm.study.results import assemble

    cells = Cells(study, config, folder, console)
    with held(folder.path):
        folder.up_to_date()
        cells.tune()
        if only_tuning:
            show_tuning(cells, console)
            return
        cells.run(all_seeds(folder))
        folder.write_json("results.json", assemble(cells))
        write_pages(folder)


def write_pages(folder: "RunFolder") -> Path:
    """Writes RESULTS.md and report.html, from results.json alone.

    If there is a cost.json, it says for which machines costs are predicted.

    Args:
      folder: with a results.json.

    Returns:
      The path of report.html.

    Raises:
      RunFolderError: there are no results, or those of another version.
    """
    from fedjax_fm.study import cost, markdown, page, results

    found = results.read(folder)
    costs = cost.of_study(found, folder)
    text = markdown.write(found) + "\n" + "\n".join(cost.as_markdown(costs))
    folder.write_text("RESULTS.md", text)
    return folder.write_text("report.html", page.write(found, page.costs(costs)))


def show_tuning(cells: Any, console: "Console") -> None:
    """Prints a line for each point of each grid, and marks the best ones.

    Args:
      cells: of a study that is tuned.
      console: where.
    """
    from fedjax_fm.runs.terminal import say
    from fedjax_fm.study.cells import best_of, is_edge

    score = cells.study.primary
    for arm in cells.study.arms:
        found = cells.tuning_of(arm) if not arm.like else []
        points, values = [one[0] for one in found], [one[1] for one in found]
        best = best_of(values, score)
        edges = [] if best is None else is_edge(points, best)
        for number, (point, value) in enumerate(found):
            shown = "failed" if value is None else score.shown(value)
            mark = " <- chosen" if number == best else ""
            if number == best and edges:
                mark += f", at the edge of {', '.join(edges)}: a better value may lie outside"
            text = ", ".join(f"{name} {setting}" for name, setting in point.items())
            say(console, f"{arm.title}: {text}: {shown}{mark}")


def compare(first: "RunFolder", second: "RunFolder") -> list[str]:
    """Compares the arms of two folders of one study, paired by seed.

    Args:
      first: with a results.json.
      second: with a results.json of the same study; differences are second minus first.

    Returns:
      Lines for reading: arms that failed, settings that differ, a verdict for each arm.

    Raises:
      UsageError: of other studies, or without a seed or an arm in common.
      RunFolderError: there are no results, or those of another version.
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
    places = [[own.index(seed) for seed in common] for own in seeds]
    for arm in arms:
        before, after = a.values(arm)[places[0]], b.values(arm)[places[1]]
        if np.isnan([before, after]).any():
            lines.append(f"{a.label(arm)}: a run failed")
        else:
            found[arm] = paired_seeds(sign * after, sign * before)
    settings_a, settings_b = a.raw["config"], b.raw["config"]
    differing = [
        name for name in sorted(settings_a) if settings_a[name] != settings_b.get(name)
    ]
    lines.append(
        f"settings that differ: {', '.join(differing) or 'none'}; seeds in common: {common}"
    )
    for arm, one in (holm(found) if found else {}).items():
        numbers = results.in_own_unit(one, score)
        shown = f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
        lines.append(f"{a.label(arm)}: {shown} {score.difference_unit}: {one.verdict}")
    return lines
