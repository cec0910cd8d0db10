"""Versions of what lies on disk: newer ones are refused, older ones read by migrations.

A run folder has its version in format.json, a checkpoint in Orbax's metadata, and
results.json, which is kept alone, in itself (`fedjax_fm.study.results`). What was written
before there were versions is of version 0.

A migration is a pure function from what one version holds to what the next one holds.
Reading applies them in memory; a run that goes on brings its folder up to date first.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fedjax_fm.runs.errors import RunFolderError, UserError
from fedjax_fm.version import __version__

FILE = "format.json"
FOLDER, CHECKPOINT = 1, 1  # what this release writes
Migration = Callable[[Any], Any]
UNEXPECTED = (KeyError, TypeError, AttributeError)  # of a migration of a damaged file


def _without_format(identity: Any) -> Any:
    """identity.json had the version of a folder before format.json did."""
    if not isinstance(identity, dict):
        return identity
    return {name: value for name, value in identity.items() if name != "format"}


# {version: {pattern of a file's name: from its value to that of the next version}}; of a
# file of lines, from a row to a row. Files that stay as they are need none.
FOLDERS: dict[int, dict[str, Migration]] = {0: {"identity.json": _without_format}}

# {version: from {path of a leaf: array} to that of the next version}.
CHECKPOINTS: dict[int, Migration] = {0: dict}


def stamp(version: int) -> dict[str, Any]:
    """What is written beside the data: the version, and which release wrote it.

    Args:
      version: of the format.
    """
    return {"format": version, "fedjax_fm": __version__}


def checked(
    found: Any,
    reads: int,
    what: str,
    error: type[UserError] = RunFolderError,
    by: str = "",
) -> int:
    """The version that was found, if this release reads it.

    Args:
      found: as it was read.
      reads: the newest version that this release reads.
      what: of that version, for the message.
      error: that is raised.
      by: the release that wrote it.

    Returns:
      The version.

    Raises:
      UserError: the version is newer, or is no whole number.

    Example:
      >>> checked(1, 2, "the run in runs/mine")
      1
    """
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise error(f"{what} is damaged: its format is {found!r}, no whole number")
    if found > reads:
        writer = f" ({by})" if by else ""
        raise error(
            f"{what} was written by a newer fedjax_fm{writer}: it is of format {found}, "
            f"and this release, {__version__}, reads up to {reads}; install a newer one "
            "with pip install -U fedjax-fm"
        )
    return found


def migrated(value: Any, version: int, table: Mapping[int, Migration], now: int) -> Any:
    """A value as today's version has it.

    Args:
      value: of an older version; is not changed.
      version: that it is of.
      table: {version: from its value to that of the next one}.
      now: today's version.

    Returns:
      The value of version `now`.

    Example:
      >>> table = {1: lambda run: {"rounds": run["n"]}}
      >>> migrated({"n": 3}, 1, table, now=2)
      {'rounds': 3}
    """
    for number in range(version, now):
        value = table[number](value)
    return value


def of_folder(path: Path) -> int:
    """The version of a run folder, 0 without format.json.

    Args:
      path: of the folder.

    Returns:
      At most `FOLDER`.

    Raises:
      RunFolderError: it is newer, or format.json is damaged.
    """
    place = path / FILE
    try:
        fields = json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{place} is damaged: {error}") from error
    if not isinstance(fields, dict):
        raise RunFolderError(f"{place} is damaged: it is no table of JSON")
    by = str(fields.get("fedjax_fm", ""))
    version = checked(fields.get("format"), FOLDER, f"the run in {path}", by=by)
    if fields.get("unfinished"):
        _finish(path)
    return version


def of_file(name: str, value: Any, version: int) -> Any:
    """The value of a file, or a row of it, as today's version has it.

    Args:
      name: of the file, relative to the run's folder, with slashes.
      value: as read.
      version: of the folder.

    Returns:
      The value, migrated where the file has changed since.
    """
    for number in range(version, FOLDER):
        for pattern, migrate in FOLDERS[number].items():
            if fnmatch(name, pattern):
                value = migrate(value)
    return value


def bring_up(path: Path) -> None:
    """Brings the files of a run folder to today's version.

    New files are written beside the old ones, then format.json, and only then take the
    places of the old ones. Whoever opens the folder after a crash sees an old folder or
    ends what was begun.

    Args:
      path: of the folder, which is there.

    Raises:
      RunFolderError: it is newer, or a file is damaged.
      OSError: a file cannot be written.
    """
    version = of_folder(path)
    if version == FOLDER:
        return
    if not any(_changed(path, version)):
        _write(path / FILE, _as_text(stamp(FOLDER)))
        return
    for file in _changed(path, version):
        name = file.relative_to(path).as_posix()
        text = file.read_text(encoding="utf-8")
        try:
            new = _text_of_today(name, text, version)
        except (ValueError, *UNEXPECTED) as error:
            raise RunFolderError(f"{file} is damaged: {error}") from error
        _write(_beside(file), new)
    _write(path / FILE, _as_text(stamp(FOLDER) | {"unfinished": True}))
    _finish(path)


def _changed(path: Path, version: int) -> Iterator[Path]:
    """Files of which there are migrations."""
    patterns = {x for number in range(version, FOLDER) for x in FOLDERS[number]}
    for pattern in sorted(patterns):
        yield from sorted(path.glob(pattern))


def _text_of_today(name: str, text: str, version: int) -> str:
    if not name.endswith(".jsonl"):
        return _as_text(of_file(name, json.loads(text), version))
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    rows = [of_file(name, json.loads(line), version) for line in whole]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _finish(path: Path) -> None:
    """Puts the files that `bring_up` has written into their places."""
    ending = f".format-{FOLDER}"
    for new in path.rglob(f"*{ending}"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.replace(new, new.with_name(new.name.removesuffix(ending)))
    _write(path / FILE, _as_text(stamp(FOLDER)))


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.format-{FOLDER}")


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def _as_text(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
