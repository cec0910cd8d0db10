"""The parts of `tools/release.py` that run nothing they check."""

import ast
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

PYTHONS = ("3.11", "3.12", "3.13")
SOURCES = ("fedjax_fm", "kernels", "experiments")
PEERS = "experiments/bench/peers/"  # for others' environments, in the repository only
DATA = (
    "fedjax_fm/py.typed",
    "fedjax_fm/datasets/files/**/*",
    "fedjax_fm/models/templates/*",
    "fedjax_fm/systems/profiles/*.toml",
    "experiments/readiness/ours.toml",
    "experiments/readiness/frameworks/*.toml",
)
# Run in the clean environment. What needs an extra says so, by a package that is missing.
IMPORTS = """
import importlib, importlib.metadata, pkgutil, re, fedjax_fm
needed = importlib.metadata.requires("fedjax-fm")
extras = {re.match(r"[\\w-]+", x)[0].replace("-", "_") for x in needed if "extra ==" in x}
extras |= {"sklearn"}  # of scikit-learn
n, without, broken = 0, [], []
for module in pkgutil.walk_packages(fedjax_fm.__path__, "fedjax_fm."):
    if any(part.startswith("_") for part in module.name.split(".")):
        continue
    try:
        importlib.import_module(module.name)
        n += 1
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        (without if missing in extras else broken).append((module.name, missing))
    except Exception as error:
        broken.append((module.name, repr(error)))
print(n, "modules imported; need an extra:", without)
if broken:
    raise SystemExit(f"broken: {broken}")
"""


class Wheel(NamedTuple):
    """What a wheel holds."""

    names: set[str]
    metadata: str

    @classmethod
    def opened(cls, path: Path) -> "Wheel":
        """Reads a wheel.

        Args:
          path: of the file.
        """
        with zipfile.ZipFile(path) as opened:
            names = {name for name in opened.namelist() if not name.endswith("/")}
            (place,) = (x for x in names if x.endswith(".dist-info/METADATA"))
            return cls(names, opened.read(place).decode())


def expected_names(source: Path) -> set[str]:
    """Files of a wheel, as the sources have them.

    Args:
      source: the repository, or a copy.

    Returns:
      Their names in the wheel.
    """
    code = (path for name in SOURCES for path in (source / name).rglob("*.py"))
    data = (path for pattern in DATA for path in source.glob(pattern))
    found = {x.relative_to(source).as_posix() for x in (*code, *data) if x.is_file()}
    own = {name for name in found if not name.startswith(PEERS)}
    return {x if x.startswith("fedjax_fm/") else f"fedjax_fm/{x}" for x in own}


def problems_of(wheel: Wheel, archive: set[str], source: Path) -> list[str]:
    """What is missing in a wheel or a source archive, and what is there for nothing.

    Args:
      wheel: that was built.
      archive: names of files in the source archive, without its folder.
      source: from which both were built.

    Returns:
      A sentence for each file.
    """
    expected = expected_names(source)
    own = {x for x in wheel.names if ".dist-info/" not in x}
    found = [f"the wheel lacks {name}" for name in sorted(expected - own)]
    found += [f"the wheel has {name} for nothing" for name in sorted(own - expected)]
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    for name in project["project"]["license-files"]:
        if not any(x.endswith(f".dist-info/licenses/{name}") for x in wheel.names):
            found.append(f"the wheel lacks the licence {name}")
    if f"\nVersion: {version_of(source)}\n" not in wheel.metadata:
        found.append(f"the wheel is not of version {version_of(source)}")
    inner = {re.sub(r"^fedjax_fm/(?=kernels/|experiments/)", "", x) for x in expected}
    inner |= {"pyproject.toml", "README.md", "LICENSE"}
    return found + [f"the source archive lacks {x}" for x in sorted(inner - archive)]


def version_of(source: Path) -> str:
    """The version in fedjax_fm/version.py.

    Args:
      source: the repository, or a copy.
    """
    text = (source / "fedjax_fm" / "version.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "(.+)"$', text, re.M)[0]


def numbers(version: str) -> tuple[int, ...]:
    """(0, 4) of "0.4" and of "0.4.0".

    Args:
      version: numbers between dots.
    """
    found = [int(part) for part in version.split(".")]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def overdue(source: Path) -> list[str]:
    """Deprecated names that this release was to remove.

    Args:
      source: the repository, or a copy.

    Returns:
      A sentence for each call with `until=` of this version or an older one.
    """
    now, found = version_of(source), []
    for name in SOURCES:
        for path in sorted((source / name).rglob("*.py")):
            for line, until in _removals(path):
                if numbers(until) <= numbers(now):
                    where = f"{path.relative_to(source).as_posix()}:{line}"
                    found.append(f"{where} was to be removed by {until}")
    return found


def _removals(path: Path) -> list[tuple[int, str]]:
    """(line, release) of each `until="…"` in calls of `fedjax_fm.deprecation`."""
    text = path.read_text(encoding="utf-8")
    if "fedjax_fm.deprecation import" not in text:
        return []
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return [
        (call.lineno, word.value.value)
        for call in calls
        for word in call.keywords
        if word.arg == "until" and isinstance(word.value, ast.Constant)
    ]


def to_do(source: Path) -> list[str]:
    """What a person has to write before the release.

    Args:
      source: the repository, or a copy.

    Returns:
      A sentence for each page that does not name this version.
    """
    version = version_of(source)
    pages = {
        "CHANGELOG.md": f"## [{version}]",
        "CITATION.cff": f"\nversion: {version}\n",
    }
    texts = {name: (source / name).read_text(encoding="utf-8") for name in pages}
    return [
        f"{name} has no {sign.strip()!r}"
        for name, sign in pages.items()
        if sign not in texts[name]
    ]


def find_python(version: str, home: Path | None = None) -> Path | None:
    """A Python of this machine: on the path, of pyenv or of uv.

    Args:
      version: such as "3.12".
      home: in which .pyenv and .local lie; default: the caller's.

    Returns:
      A program that starts and is of that version; None if there is none.
    """
    home = home or Path.home()
    name = f"python{version}"
    on_path = shutil.which(name)
    places = [Path(on_path)] if on_path else []
    places += sorted(home.glob(f".pyenv/versions/{version}.*/bin/{name}"))
    places += sorted(home.glob(f".local/share/uv/python/*{version}.*/bin/{name}"))
    return next((path for path in places if _is(path, version)), None)


def _is(path: Path, version: str) -> bool:
    """Whether the program starts, which a shim of pyenv may not, and is of the version."""
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
    except OSError:
        return False
    return done.stdout.strip() == version
