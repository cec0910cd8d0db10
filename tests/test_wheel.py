"""The wheel holds what people need who have no repository: built from a copy, without a network."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
pytest.importorskip("pip")

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("fedjax_fm", "kernels", "experiments")
DATA = ("datasets/files", "models/templates", "systems/profiles")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the open wheel, all that the build said)."""
    source = tmp_path_factory.mktemp("source")
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in SOURCES:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "out",
        ".",
    ]
    done = subprocess.run(
        command,
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-3000:]
    (wheel,) = (source / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        yield opened, done.stdout


@pytest.fixture(scope="module")
def names(built):
    return set(built[0].namelist())


def installed(path: Path) -> str:
    """Where a file of the repository lies in the wheel."""
    place = path.relative_to(ROOT).as_posix()
    return place if place.startswith("fedjax_fm/") else f"fedjax_fm/{place}"


def test_the_build_warns_of_nothing(built):
    assert "Successfully built fedjax-fm" in built[1]
    assert re.findall(r".*(?:Warning\b|absent from|deprecated).*", built[1]) == []


def test_every_module_is_in_it_but_the_peers(names):
    modules = [path for name in SOURCES for path in (ROOT / name).rglob("*.py")]
    peers = ROOT / "experiments" / "bench" / "peers"
    assert any(peers in path.parents for path in modules)
    expected = {installed(path) for path in modules if peers not in path.parents}
    assert {name for name in names if name.endswith(".py")} == expected
    assert not [name for name in names if "peers" in name]


def test_data_files_and_the_marker_of_types_are_in_it(names):
    files = [
        path
        for name in DATA
        for path in (ROOT / "fedjax_fm" / name).rglob("*")
        if path.is_file()
    ]
    assert len(files) >= 10
    columns = (ROOT / "experiments" / "readiness").rglob("*.toml")
    assert {installed(path) for path in (*files, *columns)} <= names
    assert "fedjax_fm/py.typed" in names


def test_metadata(built, names):
    (place,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    text = built[0].read(place).decode()
    found = HeaderParser().parsestr(text)
    version = re.search(
        r'^__version__ = "(.*)"$',
        (ROOT / "fedjax_fm" / "version.py").read_text(encoding="utf-8"),
        re.M,
    )
    assert found["Version"] == version[1]
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Author"] == "The fedjax_fm authors"
    assert found.get_all("Classifier") == PROJECT["classifiers"]
    assert found["Keywords"].split(",") == PROJECT["keywords"]
    assert found["Requires-Python"] == PROJECT["requires-python"]
    assert set(found.get_all("Provides-Extra")) >= {"hub", "privacy", "study"}
    licences = [
        built[0].read(place.replace("METADATA", f"licenses/{name}"))
        for name in found.get_all("License-File")
    ]
    assert licences[0] == (ROOT / "LICENSE").read_bytes()
    assert len(licences) == 2  # the sentiment data's is the other


def test_the_citation_names_this_version():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version = re.search(
        r'"(.*)"$',
        (ROOT / "fedjax_fm" / "version.py").read_text(encoding="utf-8").strip(),
    )
    assert f"\nversion: {version[1]}\n" in cited
