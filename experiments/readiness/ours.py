"""What we have: a named test for each feature, and what became of it when it was run."""

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from fedjax_fm.experiments.readiness.cells import FEATURES

ROOT = Path(__file__).resolve().parents[2]  # of the repository
OURS = Path(__file__).parent / "ours.toml"
BAD = ("failure", "error", "skipped")  # inside a case of a report that did not pass


class Own(NamedTuple):
    """One feature of ours."""

    test: str  # "FILE::FUNCTION", of all its parameters or "[ONE]"; "" where there is none
    note: str  # beside the test, or why there is none


class Run(NamedTuple):
    """A session of the named tests."""

    outcomes: Mapping[str, str]  # by test: "passed" or what else
    commit: str  # 40 hex digits
    date: str  # of the session


def ours(path: Path = OURS) -> dict[str, Own]:
    """Our column.

    Args:
      path: of the file, TOML in UTF-8.

    Raises:
      ValueError: a feature is missing or unknown, or has neither a test nor a reason.
    """
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    if set(given) != set(FEATURES):
        odd = ", ".join(sorted(set(given) ^ set(FEATURES)))
        raise ValueError(f"expected the features of FEATURES in {path.name}; see {odd}")
    return {name: _own(f"{path.name}: {name}", given[name]) for name in FEATURES}


def _own(where: str, given: Mapping[str, str]) -> Own:
    """A row that was checked."""
    test, missing = given.get("test", ""), given.get("missing", "")
    if bool(test) == bool(missing):
        raise ValueError(f"{where}: expected a test or why it is missing, got {given}")
    if test and not test.startswith("tests/"):
        raise ValueError(f"{where}: expected tests/FILE::FUNCTION, got {test!r}")
    return Own(test, given.get("note", missing))


def commit(but: Sequence[Path] = (), root: Path = ROOT) -> str:
    """The commit of the repository, if that is what lies there.

    Args:
      but: files that may have changed since.
      root: of the repository.

    Raises:
      ValueError: it is no repository, or tracked files have changed.
    """
    git = ["git", "-C", str(root)]
    head = _said([*git, "rev-parse", "HEAD"]).strip()
    changed = _said([*git, "status", "--porcelain", "--untracked-files=no"])
    names = [line[3:] for line in changed.splitlines()]
    may = {path.resolve() for path in but}
    odd = [name for name in names if (root / name).resolve() not in may]
    if odd:
        raise ValueError(f"expected no change since {head[:9]}, got {odd}: commit")
    return head


def _said(command: Sequence[str]) -> str:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def outcomes(tests: Sequence[str], root: Path = ROOT) -> dict[str, str]:
    """Runs tests in a process of their own and says what became of each.

    Args:
      tests: "FILE::FUNCTION" each, seen from the root.
      root: of the repository.

    Returns:
      {test: "passed"} if each of its parameters passed, otherwise the worst of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
        variables = {"JAX_PLATFORMS": "cpu", **os.environ}
        subprocess.run(command, cwd=root, env=variables, stdout=sys.stderr)
        if not report.is_file():
            raise ValueError(f"expected a report of {len(tests)} tests, got none")
        text = report.read_text(encoding="utf-8")
    return {test: outcome(text, test) for test in tests}


def outcome(report: str, test: str) -> str:
    """What a report says of one test.

    Args:
      report: XML, as `pytest --junitxml` writes it.
      test: "FILE::FUNCTION" or "FILE::FUNCTION[PARAMETER]", seen from the root.

    Returns:
      "passed" if it is there and no parameter asked for failed or was left out; "failure",
      "error" or "skipped" otherwise, or "not in the report".

    Example:
      >>> case = '<testcase classname="tests.a.test_b" name="test_c[{0}]">{1}</testcase>'
      >>> good, bad = case.format(0, ""), case.format(1, "<failure/>")
      >>> outcome(f"<s>{good}</s>", "tests/a/test_b.py::test_c")
      'passed'
      >>> outcome(f"<s>{good}{bad}</s>", "tests/a/test_b.py::test_c")
      'failure'
      >>> outcome(f"<s>{good}{bad}</s>", "tests/a/test_b.py::test_c[0]")
      'passed'
      >>> outcome(f"<s>{good}</s>", "tests/a/test_b.py::test_d")
      'not in the report'
    """
    file, _, function = test.partition("::")
    module = file.removesuffix(".py").replace("/", ".")
    cases = [
        case
        for case in ElementTree.fromstring(report).iter("testcase")
        if case.get("classname") == module
        and function in (case.get("name"), str(case.get("name")).partition("[")[0])
    ]
    if not cases:
        return "not in the report"
    found = {child.tag for case in cases for child in case}
    return next((tag for tag in BAD if tag in found), "passed")
