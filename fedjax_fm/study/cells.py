"""Every arm with every seed, computed once; an interrupted study computes the rest.

config.json             the study and its settings
provenance.json         code, machine, when it began
programs/               compiled programs
cells/ARM/tune-3.json   a point of an arm's grid
cells/ARM/seed-0.json   an arm with a seed
work/                   checkpoints of what is being computed
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from fedjax_fm import callbacks
from fedjax_fm.engine.faults import RoundError
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.processes import as_first_sees, is_first
from fedjax_fm.runs.provenance import commit
from fedjax_fm.runs.terminal import say
from fedjax_fm.study.run import FINAL, TUNING, Run
from fedjax_fm.study.shape import Arm, Score, Study
from fedjax_fm.systems import measured

MOST_KEPT = 4  # seeds whose data are in memory


class Cell(NamedTuple):
    """What is computed at a time: an arm at a point of its grid, or with a seed."""

    arm: Arm
    name: str  # of its file, without .json
    seed: int
    split: str  # "tuning" or "final"
    hyper: dict[str, Any]  # {setting: value} of the arm's grid
    seeds: tuple[int, ...] = ()  # of an arm that runs all of them at once


class Cells:
    """Computes the cells of a study in a folder.

    Args:
      study: what is run.
      config: its settings.
      folder: that `begin` has made.
      console: where progress is shown.
    """

    def __init__(self, study: Study, config: Any, folder: RunFolder, console: Console):
        self.study, self.config = study, config
        self.folder, self.console = folder, console
        keep = functools.lru_cache(maxsize=MOST_KEPT)
        self._data = keep(functools.partial(study.data, config))
        self._shared: dict[tuple[int, str], dict[Any, Any]] = {}
        self._commit = commit()  # of the code that this process has read
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            # Seeds differ in operands only, so an arm is compiled once.
            programs = (folder.path / "programs").resolve()
            jax.config.update("jax_compilation_cache_dir", str(programs))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

    def tune(self) -> None:
        """Computes every point of every grid that has more than one."""
        for arm in self.study.arms:
            for number, hyper in enumerate(self._tried(arm)):
                cell = Cell(
                    arm=arm,
                    name=f"tune-{number}",
                    seed=self.study.tuning_seed,
                    split=TUNING,
                    hyper=hyper,
                )
                self._compute(cell)

    def run(self, seeds: Sequence[int]) -> None:
        """Computes every arm with every seed, seed by seed.

        Args:
          seeds: of the study, in the order in which they are computed.
        """
        for arm in self.study.arms:
            if arm.at_once:
                cell = self._final(arm, seeds[0], seeds=tuple(seeds))
                self._compute(cell)
        for seed in seeds:
            for arm in self.study.arms:
                if not arm.at_once:
                    self._compute(self._final(arm, seed))

    def _final(self, arm: Arm, seed: int, seeds: tuple[int, ...] = ()) -> Cell:
        """The cell of a seed, with the arm's tuned settings."""
        return Cell(
            arm=arm,
            name=f"seed-{seed}",
            seed=seed,
            split=FINAL,
            hyper=self.hyper_of(arm),
            seeds=seeds,
        )

    def hyper_of(self, arm: Arm) -> dict[str, Any]:
        """The arm's tuned settings; for an arm that is `like` another, those of that one.

        Args:
          arm: of the study, tuned before.

        Returns:
          {setting: value}.

        Raises:
          UsageError: the run failed at every point of the grid.
        """
        source = self.study.arm(arm.like) if arm.like else arm
        points = source.points(self.config)
        if len(points) == 1:
            return points[0]
        scores = [score for _, score in self.tuning_of(source)]
        best = best_of(scores, self.study.primary)
        if best is None:
            raise UsageError(
                f"every point of the grid of {source.name!r} failed: {points}"
            )
        return points[best]

    def tuning_of(self, arm: Arm) -> list[tuple[dict[str, Any], float | None]]:
        """What was found at every point of the arm's grid.

        Args:
          arm: of the study, tuned before.

        Returns:
          (settings, primary score) of each point, None where the run failed; nothing of
          a grid with a single point.
        """
        found = []
        for number, hyper in enumerate(self._tried(arm)):
            cell = self.read(arm, f"tune-{number}")
            failed = "failed" in cell
            score = None if failed else cell["scores"][self.study.primary.name]
            found.append((hyper, score))
        return found

    def _tried(self, arm: Arm) -> list[dict[str, Any]]:
        """The points of the arm's grid; none if there is only one to choose from."""
        points = arm.points(self.config)
        return points if len(points) > 1 else []

    def read(self, arm: Arm, name: str) -> dict[str, Any]:
        """Reads the file of a cell that was computed.

        Args:
          arm: of the study.
          name: "tune-3" or "seed-0".

        Returns:
          Its scores, curve and bytes, or why it failed.
        """
        return self.folder.read_json(f"cells/{arm.name}/{name}.json")

    def _compute(self, cell: Cell) -> None:
        """Computes a cell and writes its file, unless it is there."""
        names = [f"seed-{seed}" for seed in cell.seeds] or [cell.name]
        place = self.folder.below("cells").below(cell.arm.name)
        is_there = all(place.has(f"{name}.json") for name in names)
        if as_first_sees(is_there):
            return
        with measured() as meter:
            found = self._found(cell)
        energy = meter.reading
        seconds = energy.seconds
        for name, one in zip(names, found, strict=True):
            place.write_json(f"{name}.json", one)
        row = {
            "cell": f"{cell.arm.name}/{cell.name}",
            "seconds": round(seconds, 1),
            "joules": energy.joules,
            "measured": energy.how,
        }
        self.folder.append("seconds.jsonl", json.dumps(row) + "\n")
        if is_first():
            shutil.rmtree(self._work(cell), ignore_errors=True)
        self._tell(cell, found, seconds)

    def _tell(self, cell: Cell, found: list[dict[str, Any]], seconds: float) -> None:
        """Prints one line of what was found."""
        what = "tuning" if cell.split == TUNING else f"seed {cell.seed}"
        settings = ", ".join(f"{name} {value}" for name, value in cell.hyper.items())
        scores = ", ".join(_shown(one, self.study.primary) for one in found)
        parts = (what, cell.arm.title, settings, scores, f"{seconds:.0f} s")
        say(self.console, " · ".join(part for part in parts if part))

    def _work(self, cell: Cell) -> Any:
        return self.folder.path / "work" / cell.arm.name / cell.name

    def _found(self, cell: Cell) -> list[dict[str, Any]]:
        """What each seed of the cell found, or the message of a run that diverged."""
        where = (cell.seed, cell.split)
        if where not in self._shared:
            self._shared = {where: {}}  # of the last seed alone: it holds models
        run = Run(
            arm=cell.arm.name,
            config=self.config,
            seed=cell.seed,
            split=cell.split,
            hyper=cell.hyper,
            data=functools.partial(self._data, cell.seed, cell.split),
            folder=self._work(cell),
            seeds=cell.seeds or (cell.seed,),
            shared=self._shared[where],
            looks=[callbacks.progress(f"{cell.arm.title}, {cell.name}")],
        )
        base = {"hyper": cell.hyper, "commit": self._commit}
        try:
            scores = cell.arm.run(run)
        except (RoundError, FloatingPointError) as error:
            in_one_line = " ".join(str(error).split())
            failed = {**base, "failed": in_one_line[:300]}
            return [{**failed, "seed": seed} for seed in run.seeds]
        each = self._scores_of(cell, scores)
        return [
            {
                **base,
                "seed": seed,
                "scores": one,
                "curve": run.curve,
                "clients": run.clients,
                "counts": run.counts._asdict(),
                **run.bytes,
                **run.notes,
            }
            for seed, one in zip(run.seeds, each, strict=True)
        ]

    def _scores_of(self, cell: Cell, scores: Any) -> list[dict[str, float]]:
        """{name: number} of every seed; refuses what is no such thing."""
        who = f"the arm {cell.arm.name!r}"
        if not isinstance(scores, Mapping) or self.study.primary.name not in scores:
            raise TypeError(
                f"{who} is to return {{score: number}} with "
                f"{self.study.primary.name!r}, the primary score; got "
                f"{scores!r:.200}"
            )
        columns = {
            name: np.atleast_1d(np.asarray(value, np.float64))
            for name, value in scores.items()
        }
        n = len(cell.seeds) or 1
        for name, column in columns.items():
            if column.shape != (n,):
                raise ValueError(
                    f"{who} returned {name} of shape {column.shape}, expected {n} numbers"
                )
        return [
            {name: float(column[k]) for name, column in columns.items()}
            for k in range(n)
        ]


def best_of(scores: Sequence[float | None], score: Score) -> int | None:
    """The place of the best score, the first of equal ones.

    Args:
      scores: of the points of a grid, None or NaN where the run failed.
      score: whose they are; says whether higher is better.

    Returns:
      The place; None where every run failed.

    Example:
      >>> best_of([0.5, None, 0.7, 0.7], Score("accuracy"))
      2
    """
    known = [
        (value if score.highest else -value, -place)
        for place, value in enumerate(scores)
        if value is not None and value == value
    ]
    return -max(known)[1] if known else None


def is_edge(points: Sequence[Mapping[str, Any]], best: int) -> list[str]:
    """Settings whose best value is at the edge of the grid; a better one may lie outside.

    Args:
      points: {setting: value} of the grid.
      best: place of the best one.

    Returns:
      Names of settings whose chosen number is the smallest or the largest of several.

    Example:
      >>> is_edge([{"rate": 0.1}, {"rate": 0.2}, {"rate": 0.4}], best=2)
      ['rate']
    """
    edges = []
    for name in points[0]:
        tried = [point[name] for point in points]
        values = sorted({value for value in tried if isinstance(value, (int, float))})
        if len(values) > 1 and points[best][name] in (values[0], values[-1]):
            edges.append(name)
    return edges


def check(study: Study, config: Any) -> None:
    """Raises UsageError for settings that make no sense, before anything is computed.

    Args:
      study: whose arms have to try equally many settings.
      config: whose seeds have to differ from each other and from the one that tunes.
    """
    study.check_budgets(config)
    seeds = tuple(config.seeds)
    repeated = len(set(seeds)) != len(seeds)
    if not seeds or repeated or study.tuning_seed in seeds:
        raise UsageError(
            "expected seeds without repetition, none of them "
            f"{study.tuning_seed}, which tunes; got seeds={seeds}"
        )


def begin(name: str, config: Any, folder: RunFolder, command: str) -> None:
    """Writes study.json.

    Args:
      name: of the study.
      config: its settings.
      folder: where.
      command: with which it was begun, for the report.
    """
    entry = {
        "name": name,
        "command": command,
        "seeds": list(config.seeds),
        "added_seeds": [],
    }
    folder.write_json("study.json", entry)


def add_seeds(folder: RunFolder, seeds: Sequence[int]) -> None:
    """Notes seeds that are added after the results have been seen; the report says so.

    Args:
      folder: of a study.
      seeds: new ones.

    Raises:
      UsageError: a seed is there already.
    """
    entry = folder.up_to_date().read_json("study.json")
    known = {*entry["seeds"], *entry["added_seeds"]}
    if again := sorted(set(seeds) & known):
        raise UsageError(f"seed {again[0]} is there already; there are {sorted(known)}")
    added = [*entry["added_seeds"], *seeds]
    folder.write_json("study.json", {**entry, "added_seeds": added})


def all_seeds(folder: RunFolder) -> list[int]:
    """The seeds that were planned, then those that were added.

    Args:
      folder: of a study.
    """
    entry = folder.read_json("study.json")
    return [*entry["seeds"], *entry["added_seeds"]]


def settings_of(config: Any) -> dict[str, Any]:
    """{name: value} of a configuration.

    Args:
      config: a dataclass.
    """
    names = [field.name for field in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in names}


def _shown(found: Mapping[str, Any], score: Score) -> str:
    """The primary score of a cell, or why it failed."""
    if "failed" in found:
        return f"failed: {found['failed'][:80]}"
    return score.shown(found["scores"][score.name])
