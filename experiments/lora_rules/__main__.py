"""python -m fedjax_fm.experiments.lora_rules [--smoke] [--out FOLDER]"""

import argparse
from pathlib import Path

import jax
from rich.console import Console

from fedjax_fm.experiments.lora_rules.config import Config
from fedjax_fm.experiments.lora_rules.study import run


def main() -> None:
    """Runs the study; results go to a folder of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a small run of the same kind")
    parser.add_argument("--out", type=Path, default=Path("runs/lora_rules"))
    arguments = parser.parse_args()
    # Seeds differ in operands only: one program for a rule and a learning rate.
    jax.config.update("jax_compilation_cache_dir", str((arguments.out / "programs").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    run(Config().smoke() if arguments.smoke else Config(), arguments.out, Console())


if __name__ == "__main__":
    main()
