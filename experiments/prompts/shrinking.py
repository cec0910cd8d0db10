"""How much smaller the gap between prompts and LoRA is at the larger size.

python -m fedjax_fm.experiments.prompts.shrinking runs/prompts-0
"""

import argparse
from collections.abc import Sequence

import numpy as np

from fedjax_fm.evaluation import plus_minus
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study.results import Results, read


def gaps(results: Results, size: str) -> np.ndarray:
    """Nats a token by which the prompt lies above LoRA, f64[seeds].

    Args:
      results: of the study.
      size: "half" or "whole".
    """
    return results.values(f"prompt_{size}") - results.values(f"lora_{size}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both gaps and their difference, paired over seeds.

    Args:
      arguments: of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="The gap at both sizes.")
    parser.add_argument("folder", help="of a run of the study prompts")
    results = read(RunFolder.open(parser.parse_args(arguments).folder))
    half, whole = gaps(results, "half"), gaps(results, "whole")
    for name, values in (
        ("half", half),
        ("whole", whole),
        ("smaller by", half - whole),
    ):
        print(f"{name}: {plus_minus(values.tolist(), digits=3)} nats a token")


if __name__ == "__main__":
    main()
