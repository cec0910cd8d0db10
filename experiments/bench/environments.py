"""The peers, and their virtual environments, which are made from pinned versions."""

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_fm.runs.errors import UsageError

ADAPTERS = Path(__file__).parent / "peers"
DEFAULT_CACHE = Path("~/.cache/fedjax_fm/peers")
# Without a pin pip may fetch a CUDA build of several gigabytes.
_TORCH = "torch==2.13.0"


class PeerError(Exception):
    """A peer could not be installed, did not run, or does not compute what we compute."""


class Peer(NamedTuple):
    """Another library."""

    title: str  # in tables
    script: str  # in peers/
    requirements: tuple[str, ...]  # that pip installs


PEERS = {
    "fedjax": Peer(
        "FedJAX jit 0.0.17",
        "with_fedjax.py",
        (
            "fedjax==0.0.17",
            "jax==0.4.20",
            "jaxlib==0.4.20",
            "dm-haiku==0.0.10",
            "optax==0.1.7",
            "chex==0.1.84",
            "flax==0.7.5",
            "numpy<1.27",
            "scipy<1.12",
        ),
    ),
    "drjax": Peer("DrJAX 0.2.1", "with_drjax.py", ("drjax==0.2.1", "jax==0.10.2")),
    "torch": Peer("PyTorch loop", "with_torch.py", (_TORCH, "numpy>=2.0")),
    "pfl": Peer("pfl 0.6.0", "with_pfl.py", ("pfl==0.6.0", _TORCH)),
    "flower": Peer(
        "Flower 1.41.0",
        "with_flower.py",
        ("flwr[simulation]==1.41.0", "ray==2.55.1", _TORCH),
    ),
    "peft": Peer(
        "HF PEFT 0.21.2",
        "with_peft.py",
        ("peft==0.21.2", "transformers==5.23.0", _TORCH),
    ),
}


def need_adapters() -> None:
    """Raises UsageError if the peers' scripts are missing, which are not in wheels."""
    if not ADAPTERS.is_dir():
        raise UsageError(
            "--peers of `bench engine` needs the scripts of the other libraries "
            "(experiments/bench/peers), which are in the repository only, not in "
            "the installed package; clone the repository and `pip install "
            "--editable .` there, or leave out --peers to time fedjax_fm alone"
        )


def python_of(name: str, cache: Path) -> Path:
    """The python of a peer's environment.

    The environment is made if it is missing or was made from other pins.

    Args:
      name: of the peer.
      cache: folder of all environments.

    Raises:
      PeerError: it cannot be made; with pip's last lines.
    """
    folder = cache.expanduser() / name
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(PEERS[name].requirements)
    is_complete = python.exists() and stamp.is_file()
    if is_complete and stamp.read_text(encoding="utf-8") == wanted:
        return python
    try:
        venv.create(folder, clear=True, with_pip=True, symlinks=os.name != "nt")
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerError(f"cannot make the environment {folder}: {error}") from error
    _pip(python, PEERS[name].requirements)
    # Written last, so that an interrupted installation is begun again.
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _pip(python: Path, requirements: Sequence[str]) -> None:
    words = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *requirements,
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, encoding="utf-8", env=clean_environment()
    )
    if done.returncode:
        why = last_lines(done.stderr)
        raise PeerError(f"pip install {' '.join(requirements)} failed: {why}")


def clean_environment() -> dict[str, str]:
    """This process's environment, without variables that show our packages to others."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME")
    }


def last_lines(text: str, n: int = 6) -> str:
    """The end of a process's standard error, in one line.

    Args:
      text: of standard error.
      n: lines.
    """
    lines = text.strip().splitlines()
    return " | ".join(line.strip() for line in lines[-n:])


def ours() -> list[str]:
    """The command that starts our side."""
    return [sys.executable, "-m", "fedjax_fm.experiments.bench.ours"]


def theirs(name: str, cache: Path) -> list[str]:
    """The command that starts a peer, which is installed if it is not.

    Args:
      name: of the peer.
      cache: folder of all environments.
    """
    return [str(python_of(name, cache)), str(ADAPTERS / PEERS[name].script)]
