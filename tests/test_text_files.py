"""Text files are UTF-8 wherever we run: a locale of another encoding changes no byte
that is read or written.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedjax_fm", "kernels", "experiments", "docs")
# Calls that turn bytes into text, and where their `mode` stands; None: always text.
OPENERS = {
    "open": 1,
    "fdopen": 1,
    "NamedTemporaryFile": 0,
    "TemporaryFile": 0,
    "read_text": None,
    "write_text": None,
}
OPENERS |= {"TextIOWrapper": None, "FileHandler": None}
SUBPROCESSES = ("run", "Popen", "check_output", "check_call")


def mode_of(call: ast.Call, name: str, method: bool) -> str | None:
    """The mode in which a call opens a file, as it is written; None where it is computed."""
    place = OPENERS[name]
    if place is None:
        return "r"
    if method and name == "open" and not _is_module(call):  # Path.open(mode)
        place = 0
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    node = given.get("mode", call.args[place] if len(call.args) > place else None)
    if node is None:
        return "w+b" if name.endswith("TemporaryFile") else "r"
    return node.value if isinstance(node, ast.Constant) else None


def _is_module(call: ast.Call) -> bool:
    """Whether it is `gzip.open(path, mode)` and the like, not a path's method."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id in (
        "gzip",
        "bz2",
        "lzma",
        "io",
        "codecs",
        "os",
        "tokenize",
        "builtins",
    )


def without_encoding(source: str) -> list[int]:
    """Numbers of lines that read or write text in whatever encoding the machine has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = (
            node.func.attr
            if isinstance(node.func, ast.Attribute)
            else getattr(node.func, "id", "")
        )
        named = {keyword.arg for keyword in node.keywords}
        if name in SUBPROCESSES and method:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            is_text = any(
                getattr(given.get(word), "value", False) is True
                for word in ("text", "universal_newlines")
            )
            if is_text and "encoding" not in named:
                found.append(node.lineno)
        if (
            name not in OPENERS
            or "encoding" in named
            or (name == "open" and method and _other_open(node))
        ):
            continue
        positional = (name == "read_text" and node.args) or (
            name == "write_text" and len(node.args) > 1
        )
        mode = mode_of(node, name, method)
        if not positional and mode is not None and "b" not in mode:
            found.append(node.lineno)
    return found


def _other_open(call: ast.Call) -> bool:
    """`Population.open(folder)`, `Image.open(...)`, `os.open(...)`: no text files."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(owner, ast.Name) and (
        owner.id[:1].isupper() or owner.id in ("os", "webbrowser", "tarfile")
    )


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("open('a')", [1]),
        ("open('a', 'w')", [1]),
        ("open('a', 'rb')", []),
        ("open('a', mode='wb')", []),
        ("open('a', encoding='utf-8')", []),
        ("path.open()", [1]),
        ("path.open('rb')", []),
        ("gzip.open('a', 'rt')", [1]),
        ("gzip.open('a', 'rb')", []),
        ("path.read_text()", [1]),
        ("path.read_text('utf-8')", []),
        ("path.write_text('x')", [1]),
        ("path.write_text('x', encoding='utf-8')", []),
        ("Population.open('a')", []),
        ("tempfile.NamedTemporaryFile()", []),
        ("tempfile.NamedTemporaryFile('w')", [1]),
        ("subprocess.run(['a'], text=True)", [1]),
        ("subprocess.run(['a'], text=True, encoding='utf-8')", []),
        ("subprocess.run(['a'])", []),
    ],
)
def test_the_search_finds_what_it_should(source: str, lines: list[int]):
    assert without_encoding(source) == lines


def test_every_text_file_is_opened_as_utf_8():
    files = [
        path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
    ]
    assert len(files) > 100
    found = []
    for path in files:
        lines = without_encoding(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    assert not found


def test_files_of_a_model_are_read_in_a_locale_that_is_not_utf_8(tmp_path):
    (tmp_path / "config.json").write_bytes('{"model_type": "é — 東京"}'.encode())
    (tmp_path / "model.safetensors").write_bytes(b"")
    code = (
        "import locale, sys; from fedjax_fm.models.weights import read_config; "
        "from pathlib import Path\nassert "
        "locale.getpreferredencoding(False).lower() not in ('utf-8', 'utf8'), "
        "locale.getpreferredencoding(False)\n"
        "print(ascii(read_config(Path(sys.argv[1]))['model_type']))"
    )
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ascii("é — 東京")
