"""A population as a folder of .npy files.

One file an array, `offsets.npy`, and `arrays.json`, which says what is where. A folder
is written beside its place and renamed when it is whole, so that a full disk leaves
nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import tokenize
import urllib.parse
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

OFFSETS, INDEX = "offsets.npy", "arrays.json"


def write(
    folder: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    offsets: np.ndarray,
) -> None:
    """Writes a new folder, whole or not at all.

    Args:
      folder: where; must not be there yet.
      arrays: {name: [n, ...]}.
      offsets: int64[N + 1].

    Raises:
      FileExistsError: there is something at `folder`.
    """
    path = Path(folder)
    if path.exists() or path.is_symlink():
        raise FileExistsError(
            f"{path} is there already; a population is saved into a new folder"
        )
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    files = _file_names(arrays)
    try:
        for name, array in arrays.items():
            np.save(partial / files[name], array, allow_pickle=False)
        np.save(partial / OFFSETS, offsets, allow_pickle=False)
        (partial / INDEX).write_text(
            json.dumps({"arrays": files}, indent=1), encoding="utf-8"
        )
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arrays of a folder, memory-mapped, and its offsets.

    Args:
      folder: what `write` wrote.

    Raises:
      FileNotFoundError: not a population, or one that lacks a file of its list.
      ValueError: a file that is no whole array.
    """
    path = Path(folder)
    if not (path / OFFSETS).is_file():
        raise FileNotFoundError(f"{path} is not a population: it has no {OFFSETS}")
    arrays = {}
    for name, file in _files_of(path).items():
        if not (path / file).is_file():
            raise FileNotFoundError(
                f"the population {path} lacks its array {name!r}: no file {file}"
            )
        arrays[name] = _load(path / file, mapped=True)
    return arrays, _load(path / OFFSETS, mapped=False)


def _file_names(names: Mapping[str, np.ndarray]) -> dict[str, str]:
    """A file for each array: its name, escaped.

    Numbered where a disk that ignores case would mix two up.
    """
    files: dict[str, str] = {}
    taken = {OFFSETS, INDEX}
    for name in names:
        stem = urllib.parse.quote(name, safe=" ")
        file, number = f"{stem}.npy", 1
        while file.lower() in taken:
            file, number = f"{stem}~{number}.npy", number + 1
        taken.add(file.lower())
        files[name] = file
    return files


def _files_of(path: Path) -> dict[str, str]:
    """Name -> file; without a list of arrays every .npy file is one."""
    if not (path / INDEX).is_file():
        return {
            file.stem: file.name
            for file in sorted(path.glob("*.npy"))
            if file.name != OFFSETS
        }
    try:
        files = json.loads((path / INDEX).read_text(encoding="utf-8"))["arrays"]
        outside = [file for file in files.values() if Path(file).name != file]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path / INDEX} is no list of arrays; save the population again"
        ) from error
    if outside:
        raise ValueError(
            f"{path / INDEX} names {outside[0]!r}, expected files of the folder itself"
        )
    return files


def _load(file: Path, *, mapped: bool) -> np.ndarray:
    """The array of a file."""
    try:
        return np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError, tokenize.TokenError) as error:
        raise ValueError(
            f"{file} is no whole array of numbers ({error}); save the population again"
        ) from error
