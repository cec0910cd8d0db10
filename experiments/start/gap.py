"""How much smaller a pretrained start makes the gap between IID and Dirichlet 0.1.

python -m fedjax_fm.experiments.start.gap runs/start-0
"""

import argparse
from collections.abc import Sequence

import numpy as np

from fedjax_fm.evaluation import paired_seeds, plus_minus
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study.results import Results, read


def gaps(results: Results, start: str) -> np.ndarray:
    """Accuracy of clients that are alike less that of clients that differ.

    Args:
      results: of the study.
      start: "pretrained" or "random".

    Returns:
      f64[seeds], of 1.
    """
    alike = results.values(f"{start}_iid")
    return alike - results.values(f"{start}_skewed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both gaps and their paired difference, in points.

    Args:
      arguments: of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="The gap by start.")
    parser.add_argument("folder", help="of a run of the study start")
    results = read(RunFolder.open(parser.parse_args(arguments).folder))
    pretrained, random = (gaps(results, start) for start in ("pretrained", "random"))
    print("pretrained:", plus_minus(pretrained.tolist(), scale=100), "points")
    print("random:", plus_minus(random.tolist(), scale=100), "points")
    found = paired_seeds(100 * random, 100 * pretrained)
    low, high = found.low, found.high
    print(f"smaller by: {found.difference:.1f} points [{low:.1f}, {high:.1f}]")


if __name__ == "__main__":
    main()
