"""The compilers for machines that are not here, which are installed apart."""

import importlib.util
import sys
from pathlib import Path

import pytest

APART = Path(sys.prefix) / "aot"


def needs(module):
    """Skips a test where a package is missing."""
    there = (APART / module).is_dir() or importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not there, reason=f"needs the package {module}")
