"""The folder of a run.

format.json       the version of all its files; see `fedjax_fm.runs.formats`
config.json       the resolved configuration
provenance.json   data, weights, seeds, versions
plan.json         layout over devices and blocks
identity.json     what makes it this run and no other
work.json         what one example costs: operations, steps, tokens
metrics.jsonl     one row a round, flushed after each
seconds.jsonl     how long each round took
checkpoint/       the last states (Orbax)
results.json      what was found
report.html       what was found, for reading
cost.json         for which machines the report predicts costs
"""

import contextlib
import errno
import json
import os
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_fm.runs import formats
from fedjax_fm.runs.errors import RunFolderError
from fedjax_fm.runs.processes import first_does, is_first

if TYPE_CHECKING:
    import numpy as np

# Files that are written before anything is computed.
# What numpy lets through of a damaged file of arrays, beside OSError and ValueError.
DAMAGED = (EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)
BEFORE_THE_RUN = {
    formats.FILE,
    "config.json",
    "provenance.json",
    "plan.json",
    "work.json",
    "identity.json",
    "study.json",
    "finetune.toml",
    "finetune.json",
}


class RunFolder:
    """Reads and writes the files of one run.

    Every file is complete or absent; rows of metrics are appended and flushed. Of several
    processes with one folder the first writes, and the others wait for it. The files of
    a folder that an older release wrote are read as today's; those of a newer one are
    refused by every method that reads.

    Args:
      path: of the folder, which need not exist; `create` makes a new one.

    Example:
      >>> import tempfile
      >>> place = Path(tempfile.mkdtemp()) / "mine"
      >>> folder = RunFolder.create(place, {"rounds": 2}, experiment="tiny")
      >>> folder.append_metrics({"round": 1, "loss": 0.5})
      >>> RunFolder.open(place).config
      {'experiment': 'tiny', 'rounds': 2}
      >>> RunFolder.open(place).metrics()
      [{'round': 1, 'loss': 0.5}]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._root = self.path  # has the format

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: dict[str, Any], experiment: str
    ) -> "RunFolder":
        """Makes a new folder with its config.json.

        Args:
          path: where; may exist if it is empty.
          config: settings that JSON can hold.
          experiment: name of the study.

        Returns:
          The folder.

        Raises:
          RunFolderError: it exists and is not empty, or cannot be made; nothing is left
            behind then.
        """
        folder = cls(path)
        text = _as_json({"experiment": experiment, **config})
        first_does(lambda: folder._begin(text))
        return folder

    def _begin(self, config: str) -> None:
        """Makes the folder with its config.json; see `create`."""
        missing = []
        try:
            # `exists` would say no of a folder that may not be looked into.
            missing = [
                place
                for place in (self.path, *self.path.parents)
                if not os.path.lexists(place)
            ]
            if not missing and not self._is_unused():
                command = "finetune" if self.has("finetune.toml") else "run"
                resume = (
                    f"continue it with `fedjax-fm {command} --resume {self.path}`, "
                )
                cure = resume if self.is_run else ""
                raise RunFolderError(
                    f"{self.path} exists: {cure}choose another with --out, or remove it"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            mark = formats.stamp(formats.FOLDER)
            self._write(formats.FILE, _as_json(mark))
            self._write("config.json", config)
        except (OSError, RunFolderError, ValueError) as error:
            for place in missing:
                with contextlib.suppress(OSError, ValueError):
                    place.rmdir()
            if isinstance(error, RunFolderError):
                raise
            why = getattr(error, "strerror", None) or error
            raise RunFolderError(
                f"cannot make the folder {self.path}: {why}; choose another place with "
                "--out"
            ) from error

    def _is_unused(self) -> bool:
        """Whether this is a folder in which at most half of a config.json lies."""
        # By a run that was killed before it had begun.
        left = {"config.json.part", formats.FILE, f"{formats.FILE}.part"}
        if not self.path.is_dir():
            return False
        return all(child.name in left for child in self.path.iterdir())

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """Opens the folder of a run that was begun.

        Args:
          path: of a folder with a config.json.

        Returns:
          The folder.

        Raises:
          RunFolderError: there is no config.json, or a newer release wrote the folder.
        """
        folder = cls(path)
        if not folder.is_run:
            raise RunFolderError(f"{path} is not a run folder: it has no config.json")
        formats.of_folder(folder.path)
        return folder

    @property
    def is_run(self) -> bool:
        """Whether there is a config.json."""
        return (self.path / "config.json").is_file()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; "experiment" is the study's name.

        Raises:
          RunFolderError: it is missing, damaged or names no experiment.
        """
        found = self.read_json("config.json")
        if not isinstance(found, dict) or not isinstance(found.get("experiment"), str):
            raise RunFolderError(
                f"{self.path / 'config.json'} is not the configuration of a run: it does "
                'not say which "experiment"'
            )
        return found

    def inner(self, name: str) -> "RunFolder":
        """A folder inside this one, whose files are of the same version.

        Args:
          name: of the inner folder, which need not exist.
        """
        folder = RunFolder(self.path / name)
        folder._root = self._root
        return folder

    def below(self, name: str) -> "RunFolder":
        """A folder inside this one, which is made if it is missing.

        Args:
          name: of the inner folder.

        Returns:
          The inner folder.

        Raises:
          RunFolderError: it cannot be made.
        """
        folder = self.inner(name)
        with _told(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def is_empty(self) -> bool:
        """Whether nothing was computed yet; compiled programs do not count."""
        programs = self.path / "programs"
        for path in self.path.rglob("*"):
            if not path.is_file() or programs in path.parents:
                continue
            name = path.name.removesuffix(".part")
            if name not in BEFORE_THE_RUN and path.stat().st_size:
                return False
        return True

    def remove(self) -> None:
        """Removes the folder and all that is in it."""
        if is_first():
            shutil.rmtree(self.path, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name.

        Args:
          name: of the file, relative to the folder.
        """
        return (self.path / name).is_file()

    def write_text(self, name: str, text: str) -> Path:
        """Writes a file whole: a reader sees the old text or the new one, never a part.

        Args:
          name: of the file, relative to the folder.
          text: what it is to hold.

        Returns:
          The file's path.

        Raises:
          RunFolderError: it cannot be written; the old file is as it was.
        """
        first_does(lambda: self._write(name, text))
        return self.path / name

    def _write(self, name: str, text: str) -> None:
        """Writes a file whole, in this process."""
        path = self.path / name
        scratch = path.with_name(path.name + ".part")
        with _told(path, scratch):
            scratch.write_text(text, encoding="utf-8")
            os.replace(scratch, path)

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a value as JSON, whole as `write_text` does.

        Args:
          name: of the file.
          value: of dicts, lists, texts, numbers and paths; numpy numbers and arrays
            become plain ones.

        Returns:
          The file's path.

        Raises:
          RunFolderError: it cannot be written.
          ValueError: NaN or an infinity, which JSON has not.
        """
        return self.write_text(name, _as_json(value))

    def read_json(self, name: str) -> Any:
        """Reads a file that `write_json` wrote.

        Args:
          name: of the file.

        Returns:
          Its value, as today's version has it.

        Raises:
          RunFolderError: it is missing, damaged or of a newer version.
        """
        version = formats.of_folder(self._root)
        path = self.path / name
        if not path.is_file():
            raise RunFolderError(
                f"{path} is missing: the run has not come that far, or the folder is damaged"
            )
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise RunFolderError(f"{path} is damaged: {error}") from error
        return self._of_today(name, found, version)

    def _of_today(self, name: str, value: Any, version: int) -> Any:
        """A value of a file, or a row, migrated from the folder's version."""
        path = self.path / name
        try:
            whole = path.relative_to(self._root).as_posix()
            return formats.of_file(whole, value, version)
        except formats.UNEXPECTED as error:
            raise RunFolderError(
                f"{path} is damaged: format {version} lacks {error}"
            ) from error

    def write_arrays(self, name: str, arrays: "dict[str, np.ndarray]") -> None:
        """Writes arrays as a compressed .npz file, whole as `write_text` does.

        Args:
          name: of the file.
          arrays: {name: array}; no Python objects.

        Raises:
          RunFolderError: it cannot be written.
        """
        import numpy as np

        def write() -> None:
            scratch = self.path / f"{name}.part.npz"
            with _told(self.path / name, scratch):
                np.savez_compressed(scratch, allow_pickle=False, **arrays)  # type: ignore[arg-type]
                os.replace(scratch, self.path / name)

        first_does(write)

    def read_arrays(self, name: str) -> "dict[str, np.ndarray]":
        """Reads a file that `write_arrays` wrote.

        Args:
          name: of the file.

        Returns:
          {name: array}.

        Raises:
          RunFolderError: it is missing or damaged.
        """
        import numpy as np

        try:
            with np.load(self.path / name, allow_pickle=False) as arrays:
                return dict(arrays)
        except (*DAMAGED, OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.path / name} is missing or damaged: {error}"
            ) from error

    def made(self) -> "RunFolder":
        """Makes the folder if it is missing.

        Returns:
          Self.

        Raises:
          RunFolderError: it cannot be made.
        """
        with _told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return self

    def up_to_date(self) -> "RunFolder":
        """Brings all files to today's version, of which the folder is from then on.

        Returns:
          Self.

        Raises:
          RunFolderError: a file is damaged or cannot be written, or a newer release
            wrote the folder.
        """

        def bring_up() -> None:
            with _told(self._root):
                formats.bring_up(self._root)

        first_does(bring_up)
        return self

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one row to metrics.jsonl and flushes it.

        Args:
          row: {name: number}, with the number of its round as "round".

        Raises:
          RunFolderError: it cannot be written.
        """
        line = json.dumps(row, default=_plain)
        self.append("metrics.jsonl", line + "\n")

    def append(self, name: str, text: str) -> None:
        """Adds text to the end of a file and flushes it.

        A last line that a crash cut short is taken away first: behind it nothing could be
        read.

        Args:
          name: of the file, which is made if it is missing.
          text: with its line break.

        Raises:
          RunFolderError: it cannot be written.
        """

        def write() -> None:
            path = self.path / name
            with _told(path):
                _end_last_line(path)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(text)

        first_does(write)

    def append_seconds(self, round_index: int, seconds: float) -> None:
        """Adds one row to seconds.jsonl.

        A round that a resumed run does again has two rows.

        Args:
          round_index: the round that has ended.
          seconds: since the row before.

        Raises:
          RunFolderError: it cannot be written.
        """
        row = {"round": round_index, "seconds": round(seconds, 4)}
        self.append("seconds.jsonl", json.dumps(row) + "\n")

    def seconds(self) -> dict[int, float]:
        """Reads seconds.jsonl.

        Returns:
          {round: seconds}, the last ones of a round that was done twice.

        Raises:
          RunFolderError: a line is damaged.
        """
        return {row["round"]: row["seconds"] for row in self._rows("seconds.jsonl")}

    def metrics(self) -> list[dict[str, Any]]:
        """Reads metrics.jsonl.

        Returns:
          One row a round; a last line that a crash cut short is left out.

        Raises:
          RunFolderError: another line is damaged.
        """
        return self._rows("metrics.jsonl")

    def _rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file of JSON lines, without a last one that was cut short."""
        path, version = self.path / name, formats.of_folder(self._root)
        if not path.is_file():
            return []
        rows = []
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if number < len(lines) - 1:
                    raise RunFolderError(
                        f"{path}, line {number + 1}, is damaged: {error}"
                    ) from error
                continue
            rows.append(self._of_today(name, row, version))
        return rows

    def keep_metrics(self, rounds: int) -> None:
        """Cuts metrics.jsonl back, to go on from a checkpoint.

        Args:
          rounds: how many of the first rounds stay.

        Raises:
          RunFolderError: that round has no row, or the file is damaged.
        """
        rows = [row for row in self.metrics() if row["round"] <= rounds]
        if rounds and (not rows or rows[-1]["round"] != rounds):
            raise RunFolderError(
                f"the checkpoint in {self.path} is of round {rounds}, but "
                "metrics.jsonl lacks that round"
            )
        lines = [json.dumps(row) + "\n" for row in rows]
        self.write_text("metrics.jsonl", "".join(lines))


def cannot_write(
    path: Path, error: BaseException, safe: str = "what was written before is safe"
) -> str:
    """The message for a failed write: which file, why, what is safe and what to do.

    Args:
      path: the file or folder.
      error: of any library; some keep what the system said in their text alone.
      safe: what is not lost.

    Returns:
      One line.
    """
    number = getattr(error, "errno", None)
    full = number in (errno.ENOSPC, errno.EDQUOT)
    full = full or "No space left on device" in str(error)
    limited = number == errno.EFBIG or "File too large" in str(error)
    if full:
        why, cure = "no space is left on the device", "Make room"
    elif limited:
        why, cure = "the file is larger than it may be", "Raise the limit (ulimit -f)"
    else:
        why, cure = getattr(error, "strerror", None) or str(error), "Make it writable"
    in_one_line = " ".join(why.split())
    return (
        f"cannot write {path}: {in_one_line[:300]}; {safe}. "
        f"{cure} and go on with --resume"
    )


def _end_last_line(path: Path) -> None:
    """Takes a last line without an end away, or ends it if all of it is there."""
    if not path.is_file():  # not there yet, or a device
        return
    with open(path, "rb+") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
        file.seek(0)
        *whole, last = file.read().splitlines(keepends=True)
        if _is_json(last):
            file.write(b"\n")
        else:
            file.truncate(sum(map(len, whole)))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:  # of JSON, or of UTF-8
        return False
    return True


@contextlib.contextmanager
def _told(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Turns an OSError into a RunFolderError that names the file; removes `scratch`."""
    try:
        yield
    except OSError as error:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink()
        raise RunFolderError(cannot_write(path, error)) from error


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, default=_plain, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "dtype"):  # of numpy, or anything like it
        return value.item() if value.ndim == 0 else value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")
