"""Functions and their docstrings, read from the installed packages.

The task is to write the first paragraph of a docstring, given the function without it.
A package is a client. The functions depend on the versions of the packages, which are
pinned; the hash of what was read is recorded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedjax_fm.datasets.table import DataFileError, Table, text_column

# All are installed with fedjax_fm itself; each has 60 functions or more that qualify.
PACKAGES = (
    "absl-py==2.5.1", "anyio==4.16.0", "click==8.5.1", "etils==1.15.0",
    "filelock==4.2.11", "flax==0.12.8",
    "fonttools==4.68.0", "fsspec==2026.9.0", "httpx2==2.16.2", "huggingface_hub==2.4.0",
    "jax==0.10.2", "Jinja2==3.1.6",
    "markdown-it-py==4.3.0", "matplotlib==3.11.2", "numpy==2.4.6", "opt_einsum==3.4.0",
    "optax==0.2.8",
    "orbax-checkpoint==0.12.8", "packaging==26.3", "pillow==13.0.0",
    "prometheus_client==0.26.0", "protobuf==7.36.2",
    "psutil==7.2.2", "Pygments==2.21.0", "pyparsing==3.3.3", "python-dateutil==4.0.0",
    "requests==2.34.2", "rich==15.0.0",
    "scipy==1.17.1", "tqdm==4.70.1", "treescope==0.1.10", "tyro==1.0.17", "urllib3==2.8.0",
)  # fmt: skip

WORDS = (4, 40)  # of a docstring's first paragraph
CHARACTERS = (60, 800)  # of a function's source without it
SKIPPED = {"tests", "test", "testing", "_vendor", "vendor", "_vendored_packages"}


def load_docstrings(packages: Sequence[str] = PACKAGES) -> Table:
    """Loads functions with docstrings from the installed packages.

    A function qualifies if the first paragraph of its docstring has 4 to 40 words and
    its source without the docstring 60 to 800 characters. Tests and vendored code are
    skipped. A docstring that occurs several times in a package is kept once.

    Args:
      packages: "name==version", or "name" for the version that is installed, which is
        recorded. The default lists packages that fedjax_fm itself installs, each
        with its version.

    Returns:
      A table of columns `package`, `module` (path of the file), `function`, `source`
      (without comments and docstring) and `docstring` (its first paragraph), in the
      order of packages, files and lines.

    Raises:
      DataFileError: a package is missing or has another version, or has no function
        that qualifies; the message says what to install.

    Example:
      >>> table = load_docstrings(["absl-py"])
      >>> print(*table.columns)
      package module function source docstring
      >>> all(4 <= len(text.split()) <= 40 for text in table["docstring"])
      True
    """
    rows, versions = [], {}
    wrong = [problem for package in packages if (problem := _problem(package))]
    if wrong:
        raise DataFileError(
            f"{'; '.join(wrong)}. The functions depend on the versions: pip "
            f"install {' '.join(packages)}"
        )
    for package in packages:
        name = package.partition("==")[0]
        found = list(_functions(name))
        if not found:
            raise DataFileError(
                f"{package} has no function with a docstring of {WORDS[0]} to "
                f"{WORDS[1]} words"
            )
        versions[name] = importlib.metadata.version(name)
        rows += [(name, *row) for row in found]
    columns = list(zip(*rows, strict=True))
    lines = ["\1".join(row) for row in rows]
    content = "\0".join(lines).encode()
    installed = ", ".join(f"{name} {version}" for name, version in versions.items())
    provenance = {
        "name": "docstrings",
        "kind": "real",
        "citation": f"functions of the installed packages {installed}",
        "licence": "each package's own; nothing is redistributed",
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": len(rows),
        "dropped": {},
        "versions": versions,
    }
    names = ("package", "module", "function", "source", "docstring")
    long = ("source", "docstring")
    arrays = {
        name: text_column(column) if name in long else np.array(column)
        for name, column in zip(names, columns, strict=True)
    }
    return Table(arrays, provenance)


def _problem(package: str) -> str | None:
    """What is wrong with the installed version; None where nothing is."""
    name, _, wanted = package.partition("==")
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    if wanted and found != wanted:
        return f"{name} is {found}, expected {wanted}"
    return None


def _functions(package: str) -> Iterator[tuple[str, str, str, str]]:
    """(module, function, source, docstring) of every function that qualifies."""
    distribution = importlib.metadata.distribution(package)
    seen = set()
    for path in sorted(map(Path, distribution.files or ())):
        skipped = SKIPPED & set(path.parts)
        if skipped or path.suffix != ".py" or _is_test(path):
            continue
        try:
            located = distribution.locate_file(str(path))
            source = Path(str(located)).read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, FileNotFoundError):
            continue  # templates and files for other Python versions
        for node in _definitions(tree):
            row = _row(node)
            if row and row[2] not in seen:
                seen.add(row[2])
                yield (path.as_posix(), *row)


def _is_test(path: Path) -> bool:
    """Whether the file or a folder above it is named as tests are."""
    return any(part.startswith("test_") for part in path.parts)


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions below a node, outer ones first.

    Only statements are searched: expressions are most of a tree and hold no functions.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _definitions(child)


def _row(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, str, str] | None:
    """(name, source, docstring) of a function; None where it does not qualify."""
    docstring = ast.get_docstring(node) or ""
    words = docstring.split("\n\n")[0].split()
    if not WORDS[0] <= len(words) <= WORDS[1]:
        return None
    node.body = node.body[1:] or [ast.Pass()]
    source = ast.unparse(node)  # drops comments, which could give the docstring away
    if not CHARACTERS[0] <= len(source) <= CHARACTERS[1]:
        return None
    return node.name, source, " ".join(words)
