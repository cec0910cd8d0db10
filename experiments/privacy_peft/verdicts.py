"""What the study answers, and whether its controls failed as they must.

    python -m fedjax_fm.experiments.privacy_peft.verdicts runs/privacy_peft-0

The comparisons of exposure at equal loss, and what noise in both of LoRA's factors costs
beyond noise in B alone, are one family for Holm. It ends with status 1 where a control
did not fail.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_fm.evaluation import holm, paired_seeds
from fedjax_fm.evaluation.intervals import Comparison
from fedjax_fm.evaluation.leaks import (
    CHANCE,
    Interval,
    area_interval,
    mean_exposure,
)
from fedjax_fm.experiments.privacy_peft.leaks import promised
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study.results import Results, read

EPSILONS = (8.0, 2.0, 0.5)
LOSS = "loss"


class Check(NamedTuple):
    """A control.

    Attributes:
      name: what must hold, in words.
      holds: whether it does.
      found: figures.
    """

    name: str
    holds: bool
    found: str


def cost(results: Results, arm: str, epsilon: float) -> np.ndarray:
    """Nats a token that an arm loses to the noise of an epsilon, f64[seeds].

    Args:
      results: of the study.
      arm: a part's name.
      epsilon: of client-level privacy.
    """
    score = next(score for score in results.scores if score.name == LOSS)
    noisy = results.values(f"{arm}_eps{epsilon:g}", score)
    return noisy - results.values(f"{arm}_noiseless", score)


def family(results: Results) -> dict[str, Comparison]:
    """All comparisons with p-values that Holm has corrected together.

    Args:
      results: of the study.

    Returns:
      {words: comparison}, of numbers of which less is better, with their sign turned.
    """
    found = {}
    for arm, than in results.raw["comparisons"]:
        pair = -results.values(arm), -results.values(than)
        found[f"exposure at equal loss, {arm} against {than}"] = paired_seeds(*pair)
    for epsilon in EPSILONS:
        pair = [-cost(results, arm, epsilon) for arm in ("lora", "ffa_lora")]
        name = f"cost of epsilon {epsilon:g} in nats, lora against ffa_lora"
        found[name] = paired_seeds(*pair)
    return holm(found)


def pooled(results: Results, arm: str, side: str) -> Interval:
    """The mean exposure of all canaries of one side, over all seeds.

    Args:
      results: of the study.
      arm: its name.
      side: "planted" or "left_out".
    """
    each = [bits for run in results.runs(arm) for bits in run["exposures"][side]]
    return mean_exposure(each)


def area(results: Results, arm: str, name: str) -> Interval:
    """An area under the ROC curve over all seeds, as of so many independent clients.

    Args:
      results: of the study.
      arm: its name.
      name: of the score.
    """
    runs = results.runs(arm)
    m, n = (sum(run["sides"][k] for run in runs) for k in (0, 1))
    mean = float(np.mean([run["scores"][name] for run in runs]))
    return area_interval(mean, m, n)


def checks(results: Results) -> list[Check]:
    """All controls.

    Args:
      results: of the study.
    """
    found = []
    for arm, side in (
        ("untrained", "planted"),
        ("untrained", "left_out"),
        ("full_noiseless", "left_out"),
        ("overfitted", "left_out"),
    ):
        bits = pooled(results, arm, side)
        holds = bits.low <= CHANCE <= bits.high
        name = (
            f"{arm}: canaries that are {side.replace('_', ' ')} have chance's exposure"
        )
        found.append(Check(name, holds, _told(bits, "bits")))
    blind = area(results, "untrained", "area_of_loss")
    name = "untrained: members are not told from outsiders"
    found.append(Check(name, blind.low <= 0.5 <= blind.high, _told(blind, "area")))
    bits = pooled(results, "overfitted", "planted")
    name = "overfitted: its canaries are found"
    found.append(Check(name, bits.low > CHANCE, _told(bits, "bits")))
    told = area(results, "overfitted", "area")
    name = "overfitted: its members are found"
    found.append(Check(name, told.low > 0.5, _told(told, "area")))
    return found + [_kept(results, epsilon) for epsilon in EPSILONS]


def _kept(results: Results, epsilon: float) -> Check:
    """Whether no run refutes the epsilon that it was accounted for."""
    names = [arm for arm in results.arms if arm.endswith(f"_eps{epsilon:g}")]
    runs = [run for arm in names for run in results.runs(arm)]
    most = max(run["scores"]["refuted"] for run in runs)
    promise = promised(epsilon, results.raw["config"]["delta"])
    bound = float(promise.epsilon or 0.0)
    name = f"epsilon {epsilon:g}: no run refutes it"
    return Check(
        name, most <= bound, f"{most:.2f}, at most {bound:g} of a replaced client"
    )


def _told(found: Interval, unit: str) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] {unit}"


def written(results: Results) -> list[str]:
    """The lines that are printed.

    Args:
      results: of the study.
    """
    lines = []
    for name, one in family(results).items():
        ends = (-one.difference, -one.high, -one.low)
        middle, low, high = (f"{value:+.3f}" for value in ends)
        lines.append(f"{name}: {middle} [{low}, {high}], p {one.p:.2g}, {one.verdict}")
    for check in checks(results):
        word = "holds" if check.holds else "FAILS"
        lines.append(f"{check.name}: {check.found}, {word}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints comparisons and controls.

    Args:
      arguments: of the command line; None for those of the process.

    Returns:
      1 where a control did not fail as it must, else 0.
    """
    parser = argparse.ArgumentParser(description="Answers and controls.")
    parser.add_argument("folder", help="of a run of the study privacy_peft")
    results = read(RunFolder.open(parser.parse_args(arguments).folder))
    print("\n".join(written(results)))
    return int(not all(check.holds for check in checks(results)))


if __name__ == "__main__":
    sys.exit(main())
