"""results.json: all that a study found, and what follows from it.

Everything that is shown is made from this file alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.evaluation.intervals import Comparison, holm, paired_seeds
from fedjax_fm.runs.errors import RunFolderError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study.cells import Cells, all_seeds, best_of, is_edge, settings_of
from fedjax_fm.study.clock import IN_WORDS
from fedjax_fm.study.shape import Arm, Score

VERSION = 1
FILE = "results.json"


def assemble(cells: Cells) -> dict[str, Any]:
    """The contents of results.json, from the cells of a study that is done.

    Args:
      cells: all of them computed.

    Returns:
      Nothing in it tells how long anything took, so that a study that was killed and
      went on gives the same bytes.
    """
    study, folder = cells.study, cells.folder
    entry, seeds = folder.read_json("study.json"), all_seeds(folder)
    provenance = {
        name: value
        for name, value in folder.read_json("provenance.json").items()
        if name != "started"
    }
    return {
        "version": VERSION,
        "study": entry["name"],
        "question": study.question,
        "expected": study.expected,
        "command": entry["command"],
        "seeds": entry["seeds"],
        "added_seeds": entry["added_seeds"],
        "tuning_seed": study.tuning_seed,
        "clock": IN_WORDS,
        "scores": [vars(score) for score in study.all_scores],
        "arms": {arm.name: _arm(cells, arm, seeds) for arm in study.arms},
        "comparisons": [list(pair) for pair in study.comparisons],
        "controls": [vars(control) for control in study.controls],
        "config": settings_of(cells.config),
        "provenance": provenance,
    }


def _arm(cells: Cells, arm: Arm, seeds: Sequence[int]) -> dict[str, Any]:
    source = cells.study.arm(arm.like) if arm.like else arm
    tuning = cells.tuning_of(source)
    best = (
        best_of([score for _, score in tuning], cells.study.primary) if tuning else None
    )
    return {
        "label": arm.title,
        "like": arm.like,
        "settings": cells.hyper_of(arm),
        "edges": [] if best is None else is_edge([point for point, _ in tuning], best),
        "tuning": [
            {"settings": point, "score": score}
            for point, score in tuning
            if not arm.like
        ],
        "runs": [cells.read(arm, f"seed-{seed}") for seed in seeds],
    }


def read(folder: RunFolder) -> "Results":
    """What lies in a folder.

    Raises:
      RunFolderError: no results, or those of another version.
    """
    if not folder.has(FILE):
        raise RunFolderError(
            f"{folder.path} has no {FILE}: the study is not done; go on with --resume {folder.path}"
        )
    found = folder.read_json(FILE)
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise RunFolderError(
            f"{folder.path / FILE} is of version {version!r}, expected {VERSION}: "
            "it was written by another version of fedjax_fm; run the study "
            "again, or read it with the version that wrote it"
        )
    return Results(found)


class Verdict(NamedTuple):
    """One comparison of the primary score.

    Attributes:
      arm, than: names.
      found: None where a seed failed, so that there are no pairs.
      why_not: what failed.
    """

    arm: str
    than: str
    found: Comparison | None
    why_not: str = ""

    @property
    def words(self) -> str:
        """better, worse, no difference seen, or what failed."""
        if self.found is None:
            return self.why_not
        if (
            self.found.pairs < 3
        ):  # "higher" would be of the score with its sign turned, where lower is better
            return (
                "one seed, no verdict"
                if self.found.pairs == 1
                else "two seeds, no verdict"
            )
        return self.found.verdict


class Results:
    """Questions to results.json; `raw` is its contents."""

    def __init__(self, raw: dict[str, Any]):
        self.raw = raw
        self.scores = [Score(**score) for score in raw["scores"]]

    @property
    def primary(self) -> Score:
        """The score that decides."""
        return self.scores[0]

    @property
    def arms(self) -> list[str]:
        """Names, in the order of the table."""
        return list(self.raw["arms"])

    def label(self, arm: str) -> str:
        """How pages call it."""
        return self.raw["arms"][arm]["label"]

    def runs(self, arm: str) -> list[dict[str, Any]]:
        """One a seed, those that failed among them."""
        return self.raw["arms"][arm]["runs"]

    def values(self, arm: str, score: Score | None = None) -> np.ndarray:
        """f64[seeds]: the score, NaN where the run failed or the arm has no such score."""
        name = (score or self.primary).name
        return np.array(
            [one.get("scores", {}).get(name, np.nan) for one in self.runs(arm)],
            np.float64,
        )

    def failures(self, arm: str) -> list[str]:
        """What the runs that failed said."""
        return [
            f"seed {one['seed']}: {one['failed']}"
            for one in self.runs(arm)
            if "failed" in one
        ]

    def megabytes(
        self, arm: str, ways: Sequence[str] = ("uplink_bytes", "downlink_bytes")
    ) -> float | None:
        """Of all clients together, mean over the runs that did not fail.

        None where nothing is sent.
        """
        done = [one for one in self.runs(arm) if "failed" not in one]
        sent = [sum(one[way] for way in ways) for one in done]
        return float(np.mean(sent)) / 1e6 if sent and any(sent) else None

    def rounds(self, arm: str) -> list[int]:
        """How many, one entry for each number that occurs."""
        return sorted(
            {
                int(one["curve"][-1]["round"])
                for one in self.runs(arm)
                if one.get("curve")
            }
        )

    def settings(self, arm: str) -> str:
        """The tuned settings, with "(edge)" where the grid's edge was chosen."""
        entry = self.raw["arms"][arm]
        shown = [
            f"{name} {value:g}{' (edge)' if name in entry['edges'] else ''}"
            if isinstance(value, (int, float))
            else f"{name} {value}"
            for name, value in entry["settings"].items()
        ]
        return ", ".join(shown)

    def verdicts(self) -> list[Verdict]:
        """Of all comparisons, corrected by Holm as one family."""
        return self._family([tuple(pair) for pair in self.raw["comparisons"]])

    def controls(self) -> list[tuple[dict[str, Any], Verdict]]:
        """(control, its verdict); see `has_failed`.

        Each is judged by itself: a correction would make it harder for a control to
        fail, and so easier for the study to look sound.
        """
        return [
            (control, self._family([(control["arm"], control["than"])])[0])
            for control in self.raw["controls"]
        ]

    @property
    def is_sound(self) -> bool:
        """Whether every control failed as it must."""
        return all(has_failed(verdict) for _, verdict in self.controls())

    def _family(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        verdicts, found = {}, {}
        for arm, than in pairs:
            if broken := [
                name for name in (arm, than) if np.isnan(self.values(name)).any()
            ]:
                verdicts[arm, than] = Verdict(
                    arm=arm,
                    than=than,
                    found=None,
                    why_not=f"failed: {self.label(broken[0])}",
                )
            else:
                found[arm, than] = self._compared(arm, than)
        corrected = holm(found) if found else {}  # type: ignore[arg-type]
        for pair, one in corrected.items():
            verdicts[pair] = Verdict(*pair, one)  # type: ignore[misc]
        return [verdicts[pair] for pair in pairs]

    def _compared(self, arm: str, than: str) -> Comparison:
        """Of scores where higher is better: a lower perplexity counts as more."""
        sign = 1.0 if self.primary.highest else -1.0
        return paired_seeds(sign * self.values(arm), sign * self.values(than))

    def difference(self, verdict: Verdict) -> str:
        """The difference in the score's own direction and unit, with its interval."""
        if verdict.found is None:
            return ""
        score, one = self.primary, verdict.found
        low, high = (one.low, one.high) if score.highest else (-one.high, -one.low)
        middle = one.difference if score.highest else -one.difference
        numbers = [
            f"{score.scale * value:+.{score.digits}f}" for value in (middle, low, high)
        ]
        unit = f" {score.difference_unit}" if score.difference_unit else ""
        if one.pairs == 1:
            return f"{numbers[0]}{unit}, one seed"
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]{unit}"


def has_failed(verdict: Verdict) -> bool:
    """Whether a control failed as it must: it is worse, or could not be trained at all.

    One seed has no interval: its difference alone is looked at.
    """
    if verdict.found is None:
        return True
    if verdict.found.pairs == 1:
        return verdict.found.difference < 0
    return verdict.found.high < 0
