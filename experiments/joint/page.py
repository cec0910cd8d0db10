"""The front, the picture and the pairs that do not add up, from runs' results.

    python -m fedjax_fm.experiments.joint.page runs/joint-0 runs/joint-1 --out joint.svg

A part P with a way W adds up where W costs P as much accuracy as it costs the whole
layer: excess = (acc(P, W) - acc(P, plain)) - (acc(full, W) - acc(full, plain)), paired
over seeds, all pairs one family for Holm.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from fedjax_fm.evaluation import holm, paired_seeds, plus_minus
from fedjax_fm.evaluation.intervals import Comparison
from fedjax_fm.experiments.joint.front import ARM_NAMES, front, mean
from fedjax_fm.experiments.joint.parts import PARTS
from fedjax_fm.experiments.joint.picture import draw
from fedjax_fm.experiments.joint.ways import WAYS
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study.markdown import table
from fedjax_fm.study.results import Results, read

COSTS = ("megabytes", "seconds", "joules", "memory")


def cost_of_way(results: Results, part: str, way: str) -> np.ndarray:
    """Accuracy that a way brings a part, less than 0 where it costs some, f64[seeds].

    Args:
      results: of the study.
      part: a key of `PARTS`.
      way: a key of `WAYS`.
    """
    plain = results.values(f"{part}_plain")
    return results.values(f"{part}_{way}") - plain


def excesses(results: Results) -> dict[tuple[str, str], Comparison]:
    """What a way costs a part beyond what it costs the whole layer, by Holm together.

    Pairs of which a seed failed are left out.

    Args:
      results: of the study.
    """
    found = {}
    for part, way in ARM_NAMES.values():
        if part in ("full", "zero") or way in ("plain", "mixed"):
            continue
        sides = cost_of_way(results, part, way), cost_of_way(results, "full", way)
        if np.isfinite(sides).all():
            found[f"{part}_{way}"] = paired_seeds(*sides)
    return {ARM_NAMES[name]: one for name, one in holm(found).items()}


def verdict(found: Comparison) -> str:
    """In words, what an excess says.

    Args:
      found: of `excesses`.
    """
    if found.verdict == "worse":
        return "does not add up: costs more than it costs the whole layer"
    if found.verdict == "better":
        return "costs less than it costs the whole layer"
    return "no difference seen"


def of_the_front(results: Results) -> str:
    """A table of the arms that no other beats in accuracy and in bytes both ways.

    Args:
      results: of the study.
    """
    kept = front(results, "megabytes")
    others = {cost: front(results, cost) for cost in COSTS[1:]}
    rows = []
    for arm in sorted(kept, key=lambda arm: mean(results, arm, "megabytes")):
        also = [cost for cost in others if arm in others[cost]]
        rows.append(
            [
                results.label(arm),
                plus_minus(results.values(arm), scale=100.0),
                f"{mean(results, arm, 'megabytes'):.3f}",
                f"{mean(results, arm, 'seconds'):.0f}",
                f"{mean(results, arm, 'joules'):.1f}",
                ", ".join(also) or "bytes alone",
            ]
        )
    head = ["", "accuracy (%)", "MB, both ways", "s", "J", "on the front of"]
    return "\n".join(table(head, rows))


def of_pairs(results: Results) -> str:
    """A table of the excess of every pair, in points.

    Args:
      results: of the study.
    """
    rows = []
    for (part, way), found in excesses(results).items():
        difference = f"{100 * found.difference:+.1f}"
        interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        words = [f"{difference} {interval}", f"{found.p:.2g}", verdict(found)]
        rows.append([f"{PARTS[part]}, {WAYS[way].label}", *words])
    head = ["", "excess, points", "p, of Holm", "verdict"]
    return "\n".join(table(head, rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, and draws the picture.

    Args:
      arguments: of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", help="of runs of the study joint")
    parser.add_argument("--out", help="an SVG or PNG file for the picture")
    chosen = parser.parse_args(arguments)
    runs = {}
    for name in chosen.folders:
        folder = RunFolder.open(name)
        runs[str(folder.config["task"])] = read(folder)
    for task, results in runs.items():
        print(f"## {task}\n\n{of_the_front(results)}\n\n{of_pairs(results)}\n")
    if chosen.out:
        draw(runs).savefig(chosen.out)


if __name__ == "__main__":
    main()
