"""results.json: all that a study found; every page is made from this file alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.evaluation.intervals import Comparison, holm, paired_seeds
from fedjax_fm.runs import formats
from fedjax_fm.runs.errors import RunFolderError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study.cells import Cells, all_seeds, best_of, is_edge, settings_of
from fedjax_fm.study.clock import IN_WORDS
from fedjax_fm.study.shape import Arm, Score

VERSION = 1
FILE = "results.json"

# {version: from its contents to those of the next one}; there was none before 1.
MIGRATIONS: dict[int, formats.Migration] = {}


def assemble(cells: Cells) -> dict[str, Any]:
    """The contents of results.json, from the cells of a study that is done.

    There are no times in it, so that a study that was interrupted gives the same bytes.

    Args:
      cells: all of them computed.

    Returns:
      A mapping that JSON can hold.
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
    """The entry of one arm."""
    source = cells.study.arm(arm.like) if arm.like else arm
    tuning = cells.tuning_of(source)
    points, scores = [one[0] for one in tuning], [one[1] for one in tuning]
    best = best_of(scores, cells.study.primary)
    tried = [{"settings": point, "score": score} for point, score in tuning]
    return {
        "label": arm.title,
        "like": arm.like,
        "settings": cells.hyper_of(arm),
        "edges": [] if best is None else is_edge(points, best),
        "tuning": [] if arm.like else tried,
        "runs": [cells.read(arm, f"seed-{seed}") for seed in seeds],
    }


def read(folder: RunFolder) -> "Results":
    """Reads results.json.

    Args:
      folder: of a study that is done.

    Returns:
      Its results, as today's version has them.

    Raises:
      RunFolderError: no results, or those of a newer version.
    """
    if not folder.has(FILE):
        raise RunFolderError(
            f"{folder.path} has no {FILE}: the study is not done; go on with --resume {folder.path}"
        )
    found = folder.read_json(FILE)
    said = found.get("version") if isinstance(found, dict) else None
    version = formats.checked(said, VERSION, str(folder.path / FILE))
    return Results(formats.migrated(found, version, MIGRATIONS, VERSION))


class Verdict(NamedTuple):
    """One comparison of the primary score.

    Attributes:
      arm: name of an arm.
      than: name of the arm that it is compared with.
      found: difference and p, of scores where higher is better; None where a seed
        failed, so that there are no pairs.
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
        if self.found.pairs < 3:
            number = "one seed" if self.found.pairs == 1 else "two seeds"
            return f"{number}, no verdict"
        return self.found.verdict


class Results:
    """Answers questions about the contents of results.json.

    Args:
      raw: the contents.
    """

    def __init__(self, raw: dict[str, Any]):
        self.raw = raw
        self.scores = [Score(**score) for score in raw["scores"]]

    @property
    def primary(self) -> Score:
        """The score that decides."""
        return self.scores[0]

    @property
    def arms(self) -> list[str]:
        """Names of all arms, in the order of the table."""
        return list(self.raw["arms"])

    def label(self, arm: str) -> str:
        """The arm's name on pages.

        Args:
          arm: its name.
        """
        return self.raw["arms"][arm]["label"]

    def runs(self, arm: str) -> list[dict[str, Any]]:
        """The arm's cells, one a seed, with those that failed.

        Args:
          arm: its name.
        """
        return self.raw["arms"][arm]["runs"]

    def values(self, arm: str, score: Score | None = None) -> np.ndarray:
        """The arm's score with each seed.

        Args:
          arm: its name.
          score: which one; default: the primary one.

        Returns:
          f64[seeds], NaN where the run failed or the arm has no such score.
        """
        name = (score or self.primary).name
        each = [one.get("scores", {}) for one in self.runs(arm)]
        return np.array([scores.get(name, np.nan) for scores in each], np.float64)

    def failures(self, arm: str) -> list[str]:
        """The messages of the runs that failed.

        Args:
          arm: its name.
        """
        return [
            f"seed {one['seed']}: {one['failed']}"
            for one in self.runs(arm)
            if "failed" in one
        ]

    def megabytes(
        self, arm: str, ways: Sequence[str] = ("uplink_bytes", "downlink_bytes")
    ) -> float | None:
        """MB (10^6 bytes) of all clients together, mean over the runs that succeeded.

        Args:
          arm: its name.
          ways: up, down or both.

        Returns:
          The mean; None where nothing is sent.
        """
        done = [one for one in self.runs(arm) if "failed" not in one]
        sent = [sum(one[way] for way in ways) for one in done]
        return float(np.mean(sent)) / 1e6 if any(sent) else None

    def rounds(self, arm: str) -> list[int]:
        """The numbers of rounds that occur over the seeds.

        Args:
          arm: its name.
        """
        with_curve = [one for one in self.runs(arm) if one.get("curve")]
        return sorted({int(one["curve"][-1]["round"]) for one in with_curve})

    def how_chosen(self) -> str:
        """A sentence on where the arms' settings come from."""
        tried = [len(arm["tuning"]) for arm in self.raw["arms"].values()]
        if max(tried, default=0) < 2:
            return "settings were fixed before the run, one value each, and not tuned"
        return (
            "settings were chosen on validation clients of seed "
            f"{self.raw['tuning_seed']}, each arm with the same number of tries"
        )

    def settings(self, arm: str) -> str:
        """The tuned settings, with "(edge)" where the grid's edge was chosen.

        Args:
          arm: its name.
        """
        entry, shown = self.raw["arms"][arm], []
        for name, value in entry["settings"].items():
            if isinstance(value, (int, float)):
                edge = " (edge)" if name in entry["edges"] else ""
                shown.append(f"{name} {value:g}{edge}")
            else:
                shown.append(f"{name} {value}")
        return ", ".join(shown)

    def verdicts(self) -> list[Verdict]:
        """The verdicts of all comparisons, corrected by Holm as one family."""
        return self._family([tuple(pair) for pair in self.raw["comparisons"]])

    def controls(self) -> list[tuple[dict[str, Any], Verdict]]:
        """All controls with their verdicts; see `has_failed`.

        Each is judged by itself: a correction would make it harder to see that a
        control is worse than its arm.

        Returns:
          (control, verdict) of each.
        """
        found = []
        for control in self.raw["controls"]:
            (verdict,) = self._family([(control["arm"], control["than"])])
            found.append((control, verdict))
        return found

    @property
    def is_sound(self) -> bool:
        """Whether every control failed as it must."""
        verdicts = [verdict for _, verdict in self.controls()]
        return all(has_failed(verdict) for verdict in verdicts)

    def _family(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdicts of some comparisons, corrected as one family."""
        verdicts, found = {}, {}
        for arm, than in pairs:
            broken = [name for name in (arm, than) if np.isnan(self.values(name)).any()]
            if broken:
                why = f"failed: {self.label(broken[0])}"
                verdicts[arm, than] = Verdict(
                    arm=arm, than=than, found=None, why_not=why
                )
            else:
                found[arm, than] = self._compared(arm, than)
        corrected = holm(found) if found else {}  # type: ignore[arg-type]
        for pair, one in corrected.items():
            verdicts[pair] = Verdict(*pair, one)  # type: ignore[misc]
        return [verdicts[pair] for pair in pairs]

    def _compared(self, arm: str, than: str) -> Comparison:
        """Compares scores, with their sign turned where lower is better."""
        sign = 1.0 if self.primary.highest else -1.0
        first, second = self.values(arm), self.values(than)
        return paired_seeds(sign * first, sign * second)

    def difference(self, verdict: Verdict) -> str:
        """The difference with its interval, in the score's direction and unit.

        Args:
          verdict: of a comparison.

        Returns:
          For example "+1.5 [0.4, 2.6] points"; "" where a seed failed.
        """
        if verdict.found is None:
            return ""
        score = self.primary
        middle, low, high = in_own_unit(verdict.found, score)
        unit = f" {score.difference_unit}" if score.difference_unit else ""
        if verdict.found.pairs == 1:
            return f"{middle}{unit}, one seed"
        return f"{middle} [{low}, {high}]{unit}"


def in_own_unit(found: Comparison, score: Score) -> list[str]:
    """The difference and the ends of its interval, in the score's direction and unit.

    Args:
      found: of scores whose sign was turned where lower is better.
      score: that was compared.

    Returns:
      [difference, low, high], with their signs.
    """
    if score.highest:
        values = (found.difference, found.low, found.high)
    else:
        values = (-found.difference, -found.high, -found.low)
    return [f"{score.scale * value:+.{score.digits}f}" for value in values]


def has_failed(verdict: Verdict) -> bool:
    """Whether a control failed as it must: it is worse, or could not be trained at all.

    With one seed there is no interval, and the difference alone decides.

    Args:
      verdict: of the control against the arm that must be better.
    """
    if verdict.found is None:
        return True
    if verdict.found.pairs == 1:
        return verdict.found.difference < 0
    return verdict.found.high < 0
