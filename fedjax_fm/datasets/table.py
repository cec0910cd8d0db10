"""A table of equally long columns with its provenance, and the verified reader of the
shipped files.

Real data is only worth shipping if a reader can trust that every run saw the same
bytes, so the reader compares the SHA-256 of the uncompressed file with a constant in
the code and refuses anything else.
"""

from __future__ import annotations

import difflib
import hashlib
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

FILES_ROOT = files("fedjax_fm.datasets") / "files"


class DataFileError(RuntimeError):
    """A shipped data file is missing, unreadable or not the file this version of the
    code expects.
    """


def unknown_column_error(name: str, columns: Iterable[str]) -> KeyError:
    """The error to raise for a column that is not there.

    Lists those that are, and the nearest name.
    """
    known = [str(column) for column in columns]
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return KeyError(f"unknown column {name!r}, expected one of {known}{hint}")


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of equal length, and where they come from.

    Attributes:
      columns: name -> array of shape [rows]. Held as read-only views, so that no step
        of an experiment can edit the data another step reads.
      provenance: `name`, `kind` ("real" or "synthetic"), `citation`, `licence`,
        `sha256`, `rows`, `dropped` (reason -> number of rows). A selection has its own
        `rows` and keeps the number it was taken from as `selected_from`.

    Raises:
      ValueError: no column, a column that is not one-dimensional, or columns of different lengths.

    Example:
      >>> table = Table({"text": np.array(["good", "bad"]), "label": np.array([1, 0])}, {"rows": 2})
      >>> len(table), table.select([1])["text"].tolist()
      (2, ['bad'])
    """

    columns: dict[str, np.ndarray]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("expected at least one column, got columns={}")
        shapes = {name: np.shape(column) for name, column in self.columns.items()}
        if (
            any(len(shape) != 1 for shape in shapes.values())
            or len(set(shapes.values())) != 1
        ):
            raise ValueError(
                f"expected one-dimensional columns of equal length, got shapes {shapes}"
            )
        object.__setattr__(
            self, "columns", {name: _read_only(c) for name, c in self.columns.items()}
        )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise unknown_column_error(name, self.columns)
        return self.columns[name]

    def select(self, indices: Sequence[int] | np.ndarray) -> Table:
        """The rows with these numbers, in the order given (a row may be asked for twice).

        Args:
          indices: integers, shape [selected], each in [0, len(table)).

        Raises:
          TypeError: `indices` is not of integers (a boolean mask: use `np.flatnonzero(mask)`).
          IndexError: a row number outside the table; negative numbers do not count from the end.
        """
        rows = np.asarray(indices)
        if rows.size == 0 and not isinstance(indices, np.ndarray):
            rows = rows.astype(np.int64)  # numpy makes an empty list float64
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise TypeError(
                "expected a one-dimensional array of row numbers, got "
                f"dtype={rows.dtype}, shape={rows.shape}; turn a boolean mask "
                "into row numbers with np.flatnonzero(mask)"
            )
        outside = rows[(rows < 0) | (rows >= len(self))]
        if outside.size:
            raise IndexError(
                f"expected row numbers in [0, {len(self)}), got {int(outside[0])}"
            )
        origin = self.provenance.get("selected_from", len(self))
        return Table(
            {name: column[rows] for name, column in self.columns.items()},
            {**self.provenance, "rows": len(rows), "selected_from": origin},
        )


@dataclass(frozen=True)
class SourceFile:
    """One shipped file: `files/<folder>/<name>.xz`, and the SHA-256 (hex) of its
    uncompressed bytes.
    """

    folder: str
    name: str
    sha256: str


def read_rows(source: SourceFile) -> list[list[str]]:
    """The lines of a shipped TSV (UTF-8, LF), each split at its tabs.

    Raises:
      DataFileError: the file is missing, is no whole xz file, or has other bytes than
        `source.sha256` says.
    """
    label = f"{source.folder}/{source.name}.xz"
    try:
        packed = (FILES_ROOT / source.folder / f"{source.name}.xz").read_bytes()
        raw = lzma.decompress(packed)
    except FileNotFoundError as error:
        raise _file_error(label, source.sha256, "no such file") from error
    except (lzma.LZMAError, EOFError) as error:
        raise _file_error(
            label, source.sha256, f"not a whole xz file ({error})"
        ) from error
    found = hashlib.sha256(raw).hexdigest()
    if found != source.sha256:
        raise _file_error(label, source.sha256, found)
    # Not splitlines(): it also breaks at characters such as U+2028 that may stand inside a text.
    return [
        line.split("\t") for line in raw.decode("utf-8").removesuffix("\n").split("\n")
    ]


def combined_sha256(sources: Iterable[SourceFile]) -> str:
    """One hash (hex) for several files.

    That of what `sha256sum` prints for them uncompressed, in order.
    """
    listing = "".join(f"{source.sha256}  {source.name}\n" for source in sources)
    return hashlib.sha256(listing.encode()).hexdigest()


def text_column(values: Sequence[str]) -> np.ndarray:
    """Strings of very different length as an object array, shape [rows].

    A fixed-width array would spend the width of the longest text on every row.
    """
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _read_only(column: np.ndarray) -> np.ndarray:
    view = np.asarray(column).view()
    view.setflags(write=False)
    return view


def _file_error(label: str, expected: str, found: str) -> DataFileError:
    return DataFileError(
        f"data file {label}: expected sha256 {expected} of the uncompressed "
        f"bytes, found {found}; reinstall fedjax_fm"
    )
