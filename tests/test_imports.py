"""What is imported when, by processes as people start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_fm as ffm

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax",
    "numpy",
    "matplotlib",
    "fedjax_fm.engine",
    "fedjax_fm.algorithms",
)
NAMES_OF_PARTS = (
    "engine",
    "types",
    "split",
    "directions",
    "checks",
    "runs",
    "wire",
)  # not in __all__, yet used


def python(
    code: str, *words: str, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    }
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def loaded_by(code: str, *words: str) -> list[str]:
    """Heavy modules that are there after `code`."""
    said = python(
        f"import sys\n{code}\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)",
        *words,
    )
    assert said.returncode == 0, said.stderr
    return eval(said.stderr.splitlines()[-1])


COMMAND = (
    "from fedjax_fm.cli import main\ntry:\n    main()\nexcept SystemExit as stop:\n  "
    "  assert not stop.code, stop.code"
)


@pytest.mark.parametrize(
    "words",
    [["--version"], ["--help"], ["list"], ["run", "--help"], ["wire", "--help"], ["report", "--help"], ["bench", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_what_only_tells_imports_nothing_that_computes(words):
    assert loaded_by(COMMAND, *words) == []


def test_the_package_alone_imports_nothing_that_computes():
    assert loaded_by("import fedjax_fm") == []


def test_the_version_is_the_installed_one():
    import importlib.metadata

    said = python(COMMAND, "--version")
    assert said.stdout == f"fedjax-fm {importlib.metadata.version('fedjax-fm')}\n"
    assert ffm.__version__ == importlib.metadata.version("fedjax-fm")


@pytest.mark.parametrize("name", [*ffm.__all__, *NAMES_OF_PARTS])
def test_every_public_name_is_there_and_listed(name):
    assert getattr(ffm, name) is not None
    assert name in dir(ffm)


def test_names_that_are_not_there_are_an_attribute_error():
    with pytest.raises(
        AttributeError, match="module 'fedjax_fm' has no attribute 'fedavgg'"
    ):
        ffm.fedavgg  # noqa: B018
    with pytest.raises(ImportError, match="fedavgg"):
        from fedjax_fm import fedavgg  # noqa: F401
    with pytest.raises(AttributeError, match="run_round"):
        ffm.runs.run_round  # noqa: B018
    assert all(getattr(ffm.runs, name) is not None for name in ffm.runs.__all__)


CORES = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
)
DEVICES = (
    "; import jax; print(jax.device_count(), os.environ.get('JAX_NUM_CPU_DEVICES'))"
)


@pytest.mark.parametrize(
    ("before", "variables", "devices"),
    [
        ("import os, fedjax_fm", {}, CORES),
        ("import os, jax, fedjax_fm", {}, CORES),
        ("import os; from fedjax_fm import channels", {}, CORES),
        ("import os; from fedjax_fm.engine import Simulator", {}, CORES),
        ("import os; import fedjax_fm.callbacks.loop", {}, CORES),
        ("import os, fedjax_fm", {"JAX_NUM_CPU_DEVICES": "5"}, 5),
        (
            "import os, fedjax_fm",
            {"JAX_NUM_CPU_DEVICES": "1"},
            1,
        ),  # the README's way to turn it off
        ("import os, jax, fedjax_fm", {"JAX_NUM_CPU_DEVICES": "1"}, 1),
        (
            "import os, fedjax_fm",
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            1,
        ),
        (
            "import os, fedjax_fm",
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
            3,
        ),
        ("import os, jax; jax.devices(); import fedjax_fm", {}, 1),
        (
            "import os, fedjax_fm, jax; jax.config.update('jax_num_cpu_devices', 4)",
            {},
            4,
        ),
    ],
)
def test_every_core_is_a_device_whatever_is_imported_first(before, variables, devices):
    said = python(before + DEVICES, **variables)
    assert said.stdout.split()[0] == str(devices), said.stderr


@pytest.mark.parametrize("part", ["channels", "Simulator", "kernels"])
def test_child_processes_do_not_inherit_the_number_of_devices(part):
    said = python(
        f"import os, fedjax_fm; fedjax_fm.{part}; print(os.environ.get('JAX_NUM_CPU_DEVICES'))"
    )
    assert said.stdout == "None\n", said.stderr
    said = python(
        f"import os, fedjax_fm; fedjax_fm.{part}; print(os.environ['JAX_NUM_CPU_DEVICES'])",
        JAX_NUM_CPU_DEVICES="3",
    )
    assert said.stdout == "3\n", said.stderr


# The repository's root is on the path of notebooks and of `python -c`; `kernels` is
# Hugging Face's package there.


def test_transformers_works_from_the_repositorys_root():
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    code = (
        "import transformers\nfrom transformers import BertModel, "
        "LlamaForCausalLM, BertConfig\nfrom transformers.utils import "
        "is_kernels_available\nassert not is_kernels_available()\nsmall = "
        "BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, "
        "intermediate_size=8, vocab_size=9)\n"
        "print(BertModel(small).config.hidden_size)\nimport fedjax_fm.kernels as "
        "ours; print(ours.top_k_mask.__module__)"
    )
    said = python(code)
    assert said.stdout.splitlines() == ["8", "fedjax_fm.kernels.selection"], said.stderr


@pytest.mark.parametrize(
    "code",
    ["import kernels; kernels.rotate", "from kernels import rotate", "from kernels import hadamard",
     "import kernels.hadamard", "from kernels.hadamard import rotate"],
)  # fmt: skip
def test_the_folder_is_never_a_second_copy_of_our_kernels(code):
    said = python(code)
    assert said.returncode == 1
    assert (
        "ImportError" in said.stderr
        or "ModuleNotFoundError: No module named 'kernels.hadamard'" in said.stderr
    )
    if "." not in code.replace("kernels.rotate", ""):
        assert "fedjax_fm.kernels" in said.stderr
    said = python(
        "import sys, kernels, importlib.util as u; assert "
        "u.find_spec('kernels').loader is None\nprint(sorted(m for m in "
        "sys.modules if m.split('.')[0] == 'kernels'), getattr(kernels, "
        "'__version__', 'N/A'))"
    )
    assert said.stdout == "['kernels'] N/A\n", said.stderr


def test_the_package_of_that_name_takes_our_place_where_it_is_installed(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(
        "from kernels.layer import get_kernel\n__version__ = '0.9'\n"
    )
    (tmp_path / "kernels" / "layer.py").write_text(
        "def get_kernel():\n    return 'theirs'\n"
    )
    code = (
        "import sys; sys.path.append(sys.argv[1])\nfrom kernels import "
        "get_kernel\nimport kernels.layer, fedjax_fm.kernels as ours\nimport "
        "json; print(json.dumps([get_kernel(), kernels.__version__, "
        "kernels.__file__, ours.rotate.__module__]))"
    )
    said = python(code, str(tmp_path))
    expected = [
        "theirs",
        "0.9",
        str(tmp_path / "kernels" / "__init__.py"),
        "fedjax_fm.kernels.hadamard",
    ]
    assert json.loads(said.stdout) == expected, said.stderr
