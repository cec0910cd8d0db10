"""Every arm with every seed, computed once: a study that was killed goes on with what is missing.

FOLDER/config.json       the study and its settings       cells/ARM/tune-3.json   a
point of the grid FOLDER/provenance.json   code, machine, when it began
cells/ARM/seed-0.json   a seed FOLDER/programs          compiled programs, kept on disk
work/                   checkpoints of what is being computed
"""

import dataclasses
import functools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from fedjax_fm import callbacks
from fedjax_fm.engine.faults import RoundError
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.provenance import commit
from fedjax_fm.runs.terminal import say
from fedjax_fm.study.run import FINAL, TUNING, Run
from fedjax_fm.study.shape import Arm, Score, Study

MOST_KEPT = 4  # seeds whose data are in memory


class Cell(NamedTuple):
    """What is to be computed: an arm at a point of its grid, or with a seed."""

    arm: Arm
    name: str  # of its file
    seed: int
    split: str
    hyper: dict[str, Any]
    seeds: tuple[int, ...] = ()  # of an arm that runs all of them at once


class Cells:
    """Computes the cells of a study in a folder.

    Args:
      study, config: what is run.
      folder: made before.
      console: where it says how far it is.
    """

    def __init__(self, study: Study, config: Any, folder: RunFolder, console: Console):
        self.study, self.config, self.folder, self.console = (
            study,
            config,
            folder,
            console,
        )
        self._data = functools.lru_cache(maxsize=MOST_KEPT)(
            functools.partial(study.data, config)
        )
        self._shared: dict[tuple[int, str], dict[Any, Any]] = {}
        self._commit = commit()  # of the code that this process has read
        if (
            "JAX_COMPILATION_CACHE_DIR" not in os.environ
        ):  # seeds differ in operands only: one compile for an arm
            jax.config.update(
                "jax_compilation_cache_dir", str((folder.path / "programs").resolve())
            )
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

    def tune(self) -> None:
        """Computes every point of every grid in which there is something to choose."""
        seed = self.study.tuning_seed
        for arm in self.study.arms:
            for number, hyper in enumerate(self._tried(arm)):
                self._compute(
                    Cell(
                        arm=arm,
                        name=f"tune-{number}",
                        seed=seed,
                        split=TUNING,
                        hyper=hyper,
                    )
                )

    def run(self, seeds: Sequence[int]) -> None:
        """Computes every arm with every seed, seed by seed."""
        for arm in self.study.arms:
            if arm.at_once:
                hyper = self.hyper_of(arm)
                self._compute(
                    Cell(
                        arm=arm,
                        name=f"seed-{seeds[0]}",
                        seed=seeds[0],
                        split=FINAL,
                        hyper=hyper,
                        seeds=tuple(seeds),
                    )
                )
        for seed in seeds:
            for arm in self.study.arms:
                if not arm.at_once:
                    self._compute(
                        Cell(
                            arm=arm,
                            name=f"seed-{seed}",
                            seed=seed,
                            split=FINAL,
                            hyper=self.hyper_of(arm),
                        )
                    )

    def hyper_of(self, arm: Arm) -> dict[str, Any]:
        """The arm's tuned settings; those of another arm for one that is like it."""
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
        """(settings, primary score) of every point of the arm's grid; None where the run failed."""
        found = []
        for number, hyper in enumerate(self._tried(arm)):
            cell = self.read(arm, f"tune-{number}")
            found.append(
                (
                    hyper,
                    None
                    if "failed" in cell
                    else cell["scores"][self.study.primary.name],
                )
            )
        return found

    def _tried(self, arm: Arm) -> list[dict[str, Any]]:
        """The points of the arm's grid; none where it has a single one, which needs no choice."""
        points = arm.points(self.config)
        return points if len(points) > 1 else []

    def read(self, arm: Arm, name: str) -> dict[str, Any]:
        """What was found in a cell."""
        return self.folder.read_json(f"cells/{arm.name}/{name}.json")

    def _compute(self, cell: Cell) -> None:
        names = [f"seed-{seed}" for seed in cell.seeds] or [cell.name]
        place = self.folder.below("cells").below(cell.arm.name)
        if all(place.has(f"{name}.json") for name in names):
            return
        started = time.perf_counter()
        found = self._found(cell)
        seconds = time.perf_counter() - started
        for name, one in zip(names, found, strict=True):
            place.write_json(f"{name}.json", one)
        row = {"cell": f"{cell.arm.name}/{cell.name}", "seconds": round(seconds, 1)}
        self.folder.append("seconds.jsonl", json.dumps(row) + "\n")
        shutil.rmtree(self._work(cell), ignore_errors=True)
        shown = [_shown(one, self.study.primary) for one in found]
        settings = ", ".join(f"{name} {value}" for name, value in cell.hyper.items())
        what = "tuning" if cell.split == TUNING else f"seed {cell.seed}"
        parts = (what, cell.arm.title, settings, ", ".join(shown), f"{seconds:.0f} s")
        say(self.console, " · ".join(part for part in parts if part))

    def _work(self, cell: Cell) -> Any:
        return self.folder.path / "work" / cell.arm.name / cell.name

    def _found(self, cell: Cell) -> list[dict[str, Any]]:
        """What each seed of the cell found; a run that diverges is a finding, too."""
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
            failed = {**base, "failed": " ".join(str(error).split())[:300]}
            return [{**failed, "seed": seed} for seed in run.seeds]
        return [
            {
                **base,
                "seed": seed,
                "scores": one,
                "curve": run.curve,
                "clients": run.clients,
                **run.bytes,
                **run.notes,
            }
            for seed, one in zip(run.seeds, self._scores_of(cell, scores), strict=True)
        ]

    def _scores_of(self, cell: Cell, scores: Any) -> list[dict[str, float]]:
        """{name: number} of every seed, checked."""
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
    """The place of the best score, None where every run failed."""
    known = [
        (value, -place)
        for place, value in enumerate(scores)
        if value is not None and value == value
    ]
    if not known:
        return None
    best = (
        max(known)
        if score.highest
        else min(known, key=lambda pair: (pair[0], -pair[1]))
    )
    return -best[1]


def is_edge(points: Sequence[Mapping[str, Any]], best: int) -> list[str]:
    """Settings whose chosen value is the smallest or the largest of three values or more.

    A better one may lie outside.
    """
    edges = []
    for name in points[0]:
        values = sorted(
            {point[name] for point in points if isinstance(point[name], (int, float))}
        )
        if len(values) > 1 and points[best][name] in (values[0], values[-1]):
            edges.append(name)
    return edges


def check(study: Study, config: Any) -> None:
    """Raises UsageError for settings that make no sense, before anything is made or computed."""
    study.check_budgets(config)
    seeds = tuple(config.seeds)
    if not seeds or len(set(seeds)) != len(seeds) or study.tuning_seed in seeds:
        raise UsageError(
            "expected seeds without repetition, none of them "
            f"{study.tuning_seed}, which tunes; got seeds={seeds}"
        )


def begin(name: str, config: Any, folder: RunFolder, command: str) -> None:
    """Writes what the study is."""
    entry = {
        "name": name,
        "command": command,
        "seeds": list(config.seeds),
        "added_seeds": [],
    }
    folder.write_json("study.json", entry)


def add_seeds(folder: RunFolder, seeds: Sequence[int]) -> None:
    """Notes seeds that are added after the results have been seen; the report flags them."""
    entry = folder.read_json("study.json")
    known = {*entry["seeds"], *entry["added_seeds"]}
    if again := sorted(set(seeds) & known):
        raise UsageError(f"seed {again[0]} is there already; there are {sorted(known)}")
    folder.write_json(
        "study.json", {**entry, "added_seeds": [*entry["added_seeds"], *seeds]}
    )


def all_seeds(folder: RunFolder) -> list[int]:
    """Those that were planned, then those that were added."""
    entry = folder.read_json("study.json")
    return [*entry["seeds"], *entry["added_seeds"]]


def settings_of(config: Any) -> dict[str, Any]:
    """The configuration as JSON has it."""
    return {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config)
    }


def _shown(found: Mapping[str, Any], score: Score) -> str:
    if "failed" in found:
        return f"failed: {found['failed'][:80]}"
    return f"{score.scale * found['scores'][score.name]:.{score.digits}f} {score.unit}".strip()
