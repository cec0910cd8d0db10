"""What `make release-check` looks for, on planted wheels and machines."""

import os
import sys

import pytest
from release_tool import ROOT, release

VERSION = release.version_of(ROOT)
META = f"Metadata-Version: 2.4\nName: fedjax-fm\nVersion: {VERSION}\n"
INFO = f"fedjax_fm-{VERSION}.dist-info"
LICENCES = ("LICENSE", "fedjax_fm/datasets/files/vader_icwsm2014/LICENSE")


def whole():
    """A wheel, and the names of a source archive, to which nothing is to be said."""
    names = release.expected_names(ROOT)
    archive = {x.removeprefix("fedjax_fm/") for x in names} | names
    wheel = names | {f"{INFO}/licenses/{x}" for x in LICENCES} | {f"{INFO}/METADATA"}
    archive |= {"pyproject.toml", "README.md", "LICENSE"}
    return release.Wheel(wheel, META), archive


def test_expected_are_code_and_data_of_three_packages():
    names = release.expected_names(ROOT)
    parts = (
        "fedjax_fm/py.typed",
        "fedjax_fm/kernels/hadamard.py",
        "fedjax_fm/experiments/quickstart/__init__.py",
        "fedjax_fm/systems/profiles/devices.toml",
        "fedjax_fm/datasets/files/vader_icwsm2014/LICENSE",
    )
    assert [x for x in parts if x not in names] == []
    folders = ("fedjax_fm/datasets/files/shakespeare/", "fedjax_fm/models/templates/")
    for folder in folders:
        assert any(x.startswith(folder) for x in names), folder
    assert not [x for x in names if "peers" in x or x.startswith("fedjax_fm/tests")]
    assert not [
        x for x in names if x.endswith((".ipynb", "results.json", "RESULTS.md"))
    ]


def test_a_whole_wheel_has_no_problems():
    assert release.problems_of(*whole(), ROOT) == []


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("fedjax_fm/py.typed", "the wheel lacks fedjax_fm/py.typed"),
        (
            "fedjax_fm/kernels/hadamard.py",
            "the wheel lacks fedjax_fm/kernels/hadamard.py",
        ),
        (f"{INFO}/licenses/LICENSE", "the wheel lacks the licence LICENSE"),
    ],
)
def test_what_is_missing_is_told(gone, said):
    wheel, archive = whole()
    lacking = wheel._replace(names=wheel.names - {gone})
    assert release.problems_of(lacking, archive, ROOT) == [said]


def test_what_is_there_for_nothing_is_told():
    wheel, archive = whole()
    more = wheel._replace(names=wheel.names | {"tests/test_style.py"})
    said = ["the wheel has tests/test_style.py for nothing"]
    assert release.problems_of(more, archive, ROOT) == said


def test_an_archive_without_a_file_and_another_version():
    wheel, archive = whole()
    other = wheel._replace(metadata=META.replace(VERSION, "9.0"))
    found = release.problems_of(other, archive - {"kernels/hadamard.py"}, ROOT)
    assert found == [
        f"the wheel is not of version {VERSION}",
        "the source archive lacks kernels/hadamard.py",
    ]


@pytest.fixture
def source(tmp_path):
    """A repository of version 0.4."""
    (tmp_path / "fedjax_fm").mkdir()
    (tmp_path / "fedjax_fm" / "version.py").write_text('__version__ = "0.4.0"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("until", "is_late"), [("0.3", 1), ("0.4", 1), ("0.5", 0), ("0.10", 0)]
)
def test_names_that_were_to_be_removed(source, until, is_late):
    code = (
        "from fedjax_fm.deprecation import deprecated\n\n"
        f'@deprecated("fedjax_fm.old", use="x", since="0.2", until="{until}")\n'
        "def old(): ...\n"
    )
    (source / "fedjax_fm" / "a.py").write_text(code)
    said = [f"fedjax_fm/a.py:3 was to be removed by {until}"]
    assert release.overdue(source) == said * is_late


def test_pages_that_do_not_name_the_version(source):
    (source / "CHANGELOG.md").write_text("## [Unreleased]\n")
    (source / "CITATION.cff").write_text("title: x\nversion: 0.4.0\n")
    assert release.to_do(source) == ["CHANGELOG.md has no '## [0.4.0]'"]


def test_a_python_is_found_where_it_starts(tmp_path, monkeypatch):
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    assert release.find_python(own, tmp_path) is None
    shim = tmp_path / "bin" / f"python{own}"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    assert release.find_python(own, tmp_path) is None
    real = tmp_path / ".pyenv" / "versions" / f"{own}.1" / "bin" / f"python{own}"
    real.parent.mkdir(parents=True)
    real.symlink_to(os.path.realpath(sys.executable))
    assert release.find_python(own, tmp_path) == real
    assert release.find_python("3.1", tmp_path) is None
