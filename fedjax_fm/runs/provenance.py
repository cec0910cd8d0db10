"""Where a result comes from: code, libraries and machine."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Code, libraries and machine of this process.

    Returns:
      A mapping that JSON can hold, with the time and the commit.
    """
    devices = jax.devices()
    libraries = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "tokenizers",
        "safetensors",
    )
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("fedjax-fm", *libraries)
        },
        "python": platform.python_version(),
        "processor": processor(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def processor() -> str:
    """The processor's name, and AVX-512 where it has it.

    Speeds depend on it, and the last digits of results.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    lines = [line for line in text.splitlines() if line.startswith("model name")]
    names = [line.partition(":")[2].strip() for line in lines]
    wide = ", AVX-512" if " avx512f " in text else ""
    return (names[0] if names else platform.machine()) + wide


def commit() -> str:
    """The commit of this source tree, "+changes" if it is not clean.

    Returns:
      The commit; "unknown" outside a checkout.
    """
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ("git", "-C", str(here), *words),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        # An installed copy may lie inside another checkout, which does not know this file.
        if not git("ls-files", "--error-unmatch", Path(__file__).name):
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
