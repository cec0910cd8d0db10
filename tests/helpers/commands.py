"""The command `fedjax-fm` in a process of its own, with the experiments of this folder
beside its own.
"""

import os
import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parent / "experiments"
START = (
    "import sys, fedjax_fm.experiments as e; e.__path__.append(sys.argv.pop(1)); "
    "from fedjax_fm.cli import main; main()"
)


def start_command(*words: object, cwd: Path, **variables: str) -> subprocess.Popen:
    """`fedjax-fm WORDS` on two devices, with pipes for what it prints and `variables`
    in its environment.
    """
    return subprocess.Popen(
        [sys.executable, "-c", START, str(EXPERIMENTS), *map(str, words)],
        cwd=cwd,
        text=True,
        errors="replace",
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
