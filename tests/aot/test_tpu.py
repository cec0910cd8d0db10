"""Rounds compiled by the real compiler for TPUs, ahead of time; nothing is run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_for_tpu.py")
CASES = ["top_k", "error_feedback", "downlink", "model", "model_and_downlink"]


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the package libtpu"
)
def test_channels_of_our_own_kernels_compile_for_eight_chips():
    """Refused before: a kernel must not stand where XLA may split it."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *CASES],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(CASES)
    assert all(calls >= 1 for calls in found.values()), found
