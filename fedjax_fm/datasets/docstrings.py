"""An instruction set that nobody has to ship.

Functions with docstrings, read from the installed packages.

Source without its docstring -> the docstring's first paragraph; a package is a client.
What the packages hold depends on their versions, so these are pinned, and the hash of
what was read is recorded.
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
    """Functions of the packages, in the order of packages, files and lines.

    Equal docstrings of a package once.

    Args:
      packages: "name==version", or "name" for whatever version is installed (it is recorded).

    Returns:
      A table of columns `package`, `module` (path of the file), `function`, `source`
      and `docstring`.

    Raises:
      DataFileError: a package is missing or has another version, or holds no such
        function; says what to install.
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
                f"{package} has no function with a docstring of {WORDS[0]} to {WORDS[1]} words"
            )
        versions[name] = importlib.metadata.version(name)
        rows += [(name, *row) for row in found]
    columns = list(zip(*rows, strict=True))
    content = hashlib.sha256(
        "\0".join("\1".join(row) for row in rows).encode()
    ).hexdigest()
    provenance = {
        "name": "docstrings",
        "kind": "real",
        "citation": "functions of the installed packages "
        + ", ".join(f"{n} {v}" for n, v in versions.items()),
        "licence": "each package's own; nothing is redistributed",
        "sha256": content,
        "rows": len(rows),
        "dropped": {},
        "versions": versions,
    }
    names = ("package", "module", "function", "source", "docstring")
    return Table(
        {
            name: text_column(c) if name in names[3:] else np.array(c)
            for name, c in zip(names, columns, strict=True)
        },
        provenance,
    )


def _problem(package: str) -> str | None:
    name, _, wanted = package.partition("==")
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return (
        f"{name} is {found}, expected {wanted}" if wanted and found != wanted else None
    )


def _functions(package: str) -> Iterator[tuple[str, str, str, str]]:
    """(module, function, source, docstring) of every function that qualifies."""
    distribution = importlib.metadata.distribution(package)
    seen = set()
    for path in sorted(map(Path, distribution.files or ())):
        if (
            path.suffix != ".py"
            or SKIPPED & set(path.parts)
            or any(p.startswith("test_") for p in path.parts)
        ):
            continue
        try:
            tree = ast.parse(
                Path(str(distribution.locate_file(str(path)))).read_text(
                    encoding="utf-8"
                )
            )
        except (SyntaxError, UnicodeDecodeError, FileNotFoundError):
            continue  # templates and files for other Python versions
        for node in _definitions(tree):
            row = _row(node)
            if row and row[2] not in seen:
                seen.add(row[2])
                yield (path.as_posix(), *row)


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions below, outer ones first.

    Expressions, which are most of a tree, are not looked into.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _definitions(child)


def _row(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, str, str] | None:
    docstring = ast.get_docstring(node)
    first = " ".join((docstring or "").split("\n\n")[0].split())
    if not WORDS[0] <= len(first.split()) <= WORDS[1]:
        return None
    node.body = node.body[1:] or [ast.Pass()]
    source = ast.unparse(
        node
    )  # comments and layout are dropped, so that nothing else tells the docstring
    return (
        (node.name, source, first)
        if CHARACTERS[0] <= len(source) <= CHARACTERS[1]
        else None
    )
