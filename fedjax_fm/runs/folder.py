"""The folder that a run leaves behind.

config.json       the resolved configuration          metrics.jsonl   one row a round,
flushed as it happens provenance.json   data, weights, seeds, versions
seconds.jsonl   how long each took plan.json         layout over devices and blocks
checkpoint/     the last states (Orbax) identity.json     what makes it this run
report.html     what was found, for people results.json      what was found
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_fm.runs.errors import RunFolderError

if TYPE_CHECKING:
    import numpy as np

# Files that say what a run would be; a folder with no other ones holds nothing that was computed.
BEFORE_THE_RUN = {
    "config.json",
    "provenance.json",
    "plan.json",
    "identity.json",
    "study.json",
}


class RunFolder:
    """Reads and writes one run's files.

    Every file is complete or absent, metrics rows are appended and flushed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: dict[str, Any], experiment: str
    ) -> "RunFolder":
        """Makes a new folder; refuses one that exists, and leaves nothing behind if it
        cannot be made.
        """
        folder = cls(path)
        left = {"config.json.part"}  # by a run that was killed before it had begun
        text = _as_json({"experiment": experiment, **config})
        missing = []
        try:
            # Not `exists`, which says no of what it may not see.
            missing = [
                place
                for place in (folder.path, *folder.path.parents)
                if not os.path.lexists(place)
            ]
            if not missing and (
                not folder.path.is_dir()
                or any(child.name not in left for child in folder.path.iterdir())
            ):
                cure = (
                    "continue it with `fedjax-fm run --resume " + str(path) + "`, "
                    if folder.is_run
                    else ""
                )
                raise RunFolderError(
                    f"{path} exists: {cure}choose another with --out, or remove it"
                )
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_text("config.json", text)
        except (OSError, RunFolderError, ValueError) as error:
            for place in missing:
                with contextlib.suppress(OSError, ValueError):
                    place.rmdir()
            if isinstance(error, RunFolderError):
                raise
            why = getattr(error, "strerror", None) or error
            raise RunFolderError(
                f"cannot make the folder {path}: {why}; choose another place with --out"
            ) from error
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """Opens a run that exists."""
        folder = cls(path)
        if not folder.is_run:
            raise RunFolderError(f"{path} is not a run folder: it has no config.json")
        return folder

    @property
    def is_run(self) -> bool:
        """Whether a configuration lies here."""
        return (self.path / "config.json").is_file()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, with the name of the experiment under "experiment"."""
        found = self.read_json("config.json")
        if not isinstance(found, dict) or not isinstance(found.get("experiment"), str):
            raise RunFolderError(
                f"{self.path / 'config.json'} is not the configuration of a run: it does "
                'not say which "experiment"'
            )
        return found

    def below(self, name: str) -> "RunFolder":
        """A folder inside this one, made if need be."""
        folder = RunFolder(self.path / name)
        with _told(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def is_empty(self) -> bool:
        """Whether nothing that was computed lies here, however far a run had got with
        its preparations.
        """
        programs = self.path / "programs"  # what was compiled is no finding
        files = [
            path
            for path in self.path.rglob("*")
            if path.is_file() and programs not in path.parents
        ]
        return all(
            path.name.removesuffix(".part") in BEFORE_THE_RUN or not path.stat().st_size
            for path in files
        )

    def remove(self) -> None:
        """Takes the folder away, with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Whether a file of that name is here."""
        return (self.path / name).is_file()

    def write_text(self, name: str, text: str) -> Path:
        """Writes a file in one piece: a reader or a crash sees the old one or the new one."""
        path = self.path / name
        scratch = path.with_name(path.name + ".part")
        with _told(path, scratch):
            scratch.write_text(text, encoding="utf-8")
            os.replace(scratch, path)
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """As `write_text`; numpy numbers and arrays become plain ones."""
        return self.write_text(name, _as_json(value))

    def read_json(self, name: str) -> Any:
        """Reads what `write_json` wrote."""
        path = self.path / name
        if not path.is_file():
            raise RunFolderError(
                f"{path} is missing: the run has not come that far, or the folder is damaged"
            )
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise RunFolderError(f"{path} is damaged: {error}") from error

    def write_arrays(self, name: str, arrays: "dict[str, np.ndarray]") -> None:
        """Writes NAME.npz in one piece."""
        import numpy as np

        scratch = self.path / f"{name}.part.npz"
        with _told(self.path / name, scratch):
            np.savez_compressed(scratch, allow_pickle=False, **arrays)  # type: ignore[arg-type]
            os.replace(scratch, self.path / name)

    def read_arrays(self, name: str) -> "dict[str, np.ndarray]":
        """Reads what `write_arrays` wrote."""
        import numpy as np

        try:
            with np.load(self.path / name, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.path / name} is missing or damaged: {error}"
            ) from error

    def made(self) -> "RunFolder":
        """Self, with the folder there."""
        with _told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return self

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one row to metrics.jsonl and flushes it."""
        self.append("metrics.jsonl", json.dumps(row, default=_plain) + "\n")

    def append(self, name: str, text: str) -> None:
        """Adds text to the end of a file and flushes it."""
        path = self.path / name
        with _told(path), open(path, "a", encoding="utf-8") as file:
            file.write(text)

    def append_seconds(self, round_index: int, seconds: float) -> None:
        """Adds one row to seconds.jsonl.

        A resumed run adds its own, the rounds done twice stand there twice.
        """
        self.append(
            "seconds.jsonl",
            json.dumps({"round": round_index, "seconds": round(seconds, 4)}) + "\n",
        )

    def seconds(self) -> dict[int, float]:
        """Seconds of each row of metrics.jsonl by round, the last time it was done."""
        return {row["round"]: row["seconds"] for row in self._rows("seconds.jsonl")}

    def metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line that a crash cut short is left out."""
        return self._rows("metrics.jsonl")

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.is_file():
            return []
        rows = []
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines) - 1:
                    raise RunFolderError(
                        f"{path}, line {number + 1}, is damaged: {error}"
                    ) from error
        return rows

    def keep_metrics(self, rounds: int) -> None:
        """Cuts metrics.jsonl back to the first `rounds` rounds, to go on from a checkpoint."""
        rows = [row for row in self.metrics() if row["round"] <= rounds]
        if rounds and (not rows or rows[-1]["round"] != rounds):
            raise RunFolderError(
                f"the checkpoint in {self.path} is of round {rounds}, but "
                "metrics.jsonl lacks that round"
            )
        self.write_text(
            "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
        )


def cannot_write(
    path: Path, error: BaseException, safe: str = "what was written before is safe"
) -> str:
    """One line for a disk that took no more: which file, why, what is safe and what to do.

    Args:
      error: of any library; only its text tells what the system said.
    """
    full = getattr(error, "errno", None) in (
        errno.ENOSPC,
        errno.EDQUOT,
    ) or "No space left on device" in str(error)
    why = (
        "no space is left on the device"
        if full
        else getattr(error, "strerror", None) or str(error)
    )
    cure = "make room" if full else "make it writable"
    return (
        f"cannot write {path}: {' '.join(why.split())[:300]}; {safe}. "
        f"{cure.capitalize()} and go on with --resume"
    )


@contextlib.contextmanager
def _told(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Says of an error of the system which file it was, and takes half of one away."""
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
