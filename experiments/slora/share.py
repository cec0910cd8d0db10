"""Which share of the gap between LoRA and full tuning SLoRA closed, from a run's results.

python -m fedjax_fm.experiments.slora.share runs/slora-0
"""

import argparse
from collections.abc import Sequence

import numpy as np

from fedjax_fm.evaluation import plus_minus
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study.results import Results, read


def shares(results: Results) -> np.ndarray:
    """(SLoRA - LoRA) / (full - LoRA) of each seed.

    Args:
      results: of the study.

    Returns:
      f64[seeds]; NaN where full tuning was no better than LoRA, so that there is no gap.
    """
    slora, lora, full = (results.values(arm) for arm in ("slora", "lora", "full"))
    gap = full - lora
    return np.divide(slora - lora, gap, out=np.full_like(gap, np.nan), where=gap > 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the shares and, where each seed has a gap, their mean.

    Args:
      arguments: of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="SLoRA's share of the gap.")
    parser.add_argument("folder", help="of a run of the study slora")
    found = shares(read(RunFolder.open(parser.parse_args(arguments).folder)))
    print("by seed:", ", ".join(f"{share:.2f}" for share in found))
    if np.isnan(found).any():
        print("no mean: with a seed of NaN, full tuning was no better than LoRA")
    else:
        print("share of the gap:", plus_minus(found.tolist(), digits=2))


if __name__ == "__main__":
    main()
