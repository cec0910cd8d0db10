"""Tables with their provenance, and the reader of the shipped files.

The reader compares the SHA-256 of each uncompressed file with a constant in the code
and refuses anything else, so that every run sees the same bytes.
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
    """A data file is missing, unreadable, or differs from what the code expects."""


def unknown_column_error(name: str, columns: Iterable[str]) -> KeyError:
    """Makes the error for a column that a table does not have.

    Args:
      name: the column that was asked for.
      columns: the names that there are.

    Returns:
      A KeyError that lists them and suggests the nearest one.

    Example:
      >>> print(unknown_column_error("lable", ["text", "label"]))
      "unknown column 'lable', expected one of ['text', 'label']; did you mean 'label'?"
    """
    known = [str(column) for column in columns]
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return KeyError(f"unknown column {name!r}, expected one of {known}{hint}")


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of equal length, and where they come from.

    Attributes:
      columns: {name: array of shape [rows]}, held as read-only views, so that no step
        of an experiment can change the data of another.
      provenance: `name`, `kind` ("real" or "synthetic"), `citation`, `licence`,
        `sha256`, `rows`, `dropped` ({reason: rows}). A selection has its own `rows`,
        and the number of rows of the whole table as `selected_from`.

    Raises:
      ValueError: no column, one that is not one-dimensional, or different lengths.

    Example:
      >>> columns = {"text": np.array(["good", "bad"]), "label": np.array([1, 0])}
      >>> table = Table(columns, {"rows": 2})
      >>> len(table), table["label"].tolist()
      (2, [1, 0])
      >>> table.select([1])["text"].tolist()
      ['bad']
    """

    columns: dict[str, np.ndarray]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("expected at least one column, got columns={}")
        shapes = {name: np.shape(column) for name, column in self.columns.items()}
        flat = all(len(shape) == 1 for shape in shapes.values())
        distinct = set(shapes.values())
        if not flat or len(distinct) != 1:
            raise ValueError(
                f"expected one-dimensional columns of equal length, got shapes {shapes}"
            )
        columns = {name: _read_only(column) for name, column in self.columns.items()}
        object.__setattr__(self, "columns", columns)

    def __len__(self) -> int:
        first, *_ = self.columns.values()
        return len(first)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise unknown_column_error(name, self.columns)
        return self.columns[name]

    def select(self, indices: Sequence[int] | np.ndarray) -> Table:
        """Selects rows by number, in the order given; a row may come twice.

        Args:
          indices: i64[selected], each in [0, len(table)).

        Returns:
          A table of these rows.

        Raises:
          TypeError: not whole numbers. For a boolean mask use `np.flatnonzero(mask)`.
          IndexError: a row number outside of the table; negative ones are not counted
            from the end.
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
    """One shipped file, `files/<folder>/<name>.xz`.

    Attributes:
      folder: below `files`.
      name: of the file without `.xz`.
      sha256: of its uncompressed bytes, in hexadecimal.
    """

    folder: str
    name: str
    sha256: str


def read_rows(source: SourceFile) -> list[list[str]]:
    """Reads the lines of a shipped TSV (UTF-8, LF), each split at its tabs.

    Args:
      source: the file and the hash that it must have.

    Returns:
      One list of fields for each line.

    Raises:
      DataFileError: the file is missing, is no whole xz file, or has other bytes than
        `source.sha256` says.
    """
    label = f"{source.folder}/{source.name}.xz"
    try:
        path = FILES_ROOT / source.folder / f"{source.name}.xz"
        raw = lzma.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise _file_error(label, source.sha256, "no such file") from error
    except (lzma.LZMAError, EOFError) as error:
        raise _file_error(
            label, source.sha256, f"not a whole xz file ({error})"
        ) from error
    found = hashlib.sha256(raw).hexdigest()
    if found != source.sha256:
        raise _file_error(label, source.sha256, found)
    # Not splitlines(), which also breaks at characters such as U+2028 inside of a text.
    text = raw.decode("utf-8").removesuffix("\n")
    return [line.split("\t") for line in text.split("\n")]


def combined_sha256(sources: Iterable[SourceFile]) -> str:
    """One hash for several files: that of what `sha256sum` prints for them.

    Args:
      sources: the files, in this order, uncompressed.

    Returns:
      SHA-256 in hexadecimal.
    """
    listing = "".join(f"{source.sha256}  {source.name}\n" for source in sources)
    return hashlib.sha256(listing.encode()).hexdigest()


def text_column(values: Sequence[Any]) -> np.ndarray:
    """Strings of very different length as an object array.

    An array of fixed width would take the memory of the longest text for every row.

    Args:
      values: the strings; other objects are kept as they are.

    Returns:
      object[rows].

    Example:
      >>> text_column(["one", "two three"]).dtype
      dtype('O')
    """
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _read_only(column: np.ndarray) -> np.ndarray:
    """A view that refuses to be written to."""
    view = np.asarray(column).view()
    view.setflags(write=False)
    return view


def _file_error(label: str, expected: str, found: str) -> DataFileError:
    """The error for a file that is not the shipped one; hashes in hexadecimal."""
    return DataFileError(
        f"data file {label}: expected sha256 {expected} of the uncompressed "
        f"bytes, found {found}; reinstall fedjax_fm"
    )
