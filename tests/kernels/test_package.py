"""The kernels are one module under one name, and their examples are true."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_fm.kernels

MODULES = [
    module.name
    for module in pkgutil.walk_packages(
        fedjax_fm.kernels.__path__, "fedjax_fm.kernels."
    )
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_a_second_copy_under_the_name_kernels_is_refused():
    root = Path(fedjax_fm.kernels.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", "from kernels import rotate"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "imported as fedjax_fm.kernels" in done.stderr


def test_kernels_import_jax_only():
    """Beside the standard library and each other."""
    for name in MODULES:
        for line in (
            Path(importlib.import_module(name).__file__).read_text().splitlines()
        ):
            if line.startswith(("import ", "from ")):
                module = line.split()[1]
                root = module.split(".")[0]
                assert root in {"jax", *sys.stdlib_module_names} or module.startswith(
                    "fedjax_fm.kernels"
                ), (name, line)
