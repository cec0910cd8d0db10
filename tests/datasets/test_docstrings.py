"""Functions of installed packages as instructions: what is taken, what is not, and that
versions matter.
"""

import importlib

import pytest

from fedjax_fm import datasets
from fedjax_fm.datasets import docstrings
from fedjax_fm.datasets.table import DataFileError

MODULE = '''
class A:
    def method(self, value: int) -> int:
        """Doubles a value, and says nothing.

        More about it.
        """
        return value * 2000000000000000000  # a comment that is dropped

    def short(self): """Too short."""

def outer(x):
    if x:
        def inner(y):
            """Adds the outer value to y, which is a closure."""
            return x + y + 1000000000000000000000000000000000000
    return inner

def again(value_of_some_length, another_value):
    """Doubles a value, and says nothing."""
    return (value_of_some_length, another_value, 1)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A distribution `toy` 1.0 with one module, a test and a file that is not Python 3."""
    (tmp_path / "toy" / "tests").mkdir(parents=True)
    (tmp_path / "toy" / "code.py").write_text(MODULE)
    (tmp_path / "toy" / "tests" / "test_code.py").write_text(MODULE)
    (tmp_path / "toy" / "old.py").write_text("print 'hello'")
    info = tmp_path / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "RECORD").write_text(
        "toy/code.py,,\ntoy/tests/test_code.py,,\ntoy/old.py,,\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


@pytest.mark.usefixtures("package")
def test_functions_of_a_toy_package():
    table = datasets.load_docstrings(["toy==1.0"])
    assert table["function"].tolist() == [
        "method",
        "inner",
    ]  # `again` repeats a docstring
    assert table["docstring"][0] == "Doubles a value, and says nothing."
    assert (
        table["source"][0]
        == "def method(self, value: int) -> int:\n    return value * 2000000000000000000"
    )
    assert '"""' not in table["source"][1]
    assert table.provenance["versions"] == {"toy": "1.0"}
    assert (
        table.provenance["sha256"]
        == datasets.load_docstrings(["toy"]).provenance["sha256"]
    )


@pytest.mark.usefixtures("package")
def test_files_are_utf8_whatever_the_console_is(tmp_path, monkeypatch):
    text = MODULE.replace(
        "Doubles a value, and says nothing.",
        "Doubles a value and says naïvely nothing.",
    )
    (tmp_path / "toy" / "code.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")
    assert "naïvely" in datasets.load_docstrings(["toy==1.0"])["docstring"][0]


@pytest.mark.usefixtures("package")
def test_other_versions_and_missing_packages_say_what_to_install():
    with pytest.raises(
        DataFileError,
        match=r"toy is 1\.0, expected 2\.0; nonsuch is not installed.*pip install toy==2\.0",
    ):
        datasets.load_docstrings(["toy==2.0", "nonsuch==1.0"])


def test_a_real_package():
    table = datasets.load_docstrings(["optax"])
    assert len(table) > 150
    assert set(table["package"]) == {"optax"}
    assert all(4 <= len(text.split()) <= 40 for text in table["docstring"])


def test_pins_name_each_package_once():
    names = [pin.partition("==")[0].lower() for pin in docstrings.PACKAGES]
    assert (
        len(set(names)) == len(names) == sum("==" in pin for pin in docstrings.PACKAGES)
    )
