"""Clients as files of JSON lines, one a site, as NVIDIA FLARE's examples keep them.

`{site}/training.jsonl` is the place of its example `llm_hf`, whose lines have `input` and
`output`; `alpha10.0_{site}.jsonl` that of its NeMo example on PEFT (NVIDIA/NVFlare,
examples/advanced/llm_hf/job.py, commit 0d00a84a, and integration/nemo/examples/peft/data/
split_financial_phrase_data.py, commit 0079d86a).
"""

import glob
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.population.columns import TableLike, column_names, read_column
from fedjax_fm.population.population import Population
from fedjax_fm.population.table_rows import checked_rows

FILE = "{site}/training.jsonl"
PLACE = "{site}"


class Sites(NamedTuple):
    """The rows of all sites.

    Attributes:
      names: of the sites, in the order of the clients.
      columns: {name: values of all rows}, a table.
      rows: the row numbers of each site.
    """

    names: tuple[str, ...]
    columns: dict[str, Any]
    rows: list[np.ndarray]

    def population(self) -> Population:
        """The sites as clients, if all columns are numbers.

        Raises:
          ValueError: columns of text, which have to become numbers first, or ragged
            ones; `Population.from_table(columns, rows=rows, pad=...)` pads them.
        """
        return Population.from_table(self.columns, rows=self.rows)


def write_sites(
    folder: str | os.PathLike[str],
    table: TableLike | Population,
    rows: Iterable[Sequence[int] | np.ndarray] | None = None,
    *,
    sites: Sequence[str] | None = None,
    file: str = FILE,
) -> tuple[str, ...]:
    """Writes each client's rows to a file of its own.

    Args:
      folder: where.
      table: a population, or anything with named columns, of text or numbers.
      rows: the row numbers of each client; None for a population.
      sites: names of the clients; default site-1, site-2, ...
      file: path in the folder, with {site} for the name.

    Returns:
      The names.

    Raises:
      TypeError: a table without `rows`, or a population with them.
      ValueError: names that are no file's, or not as many as clients; a value that JSON
        does not have, such as NaN.
      FileExistsError: one of the files is there.

    Example:
      >>> import tempfile
      >>> table = {"input": ["a", "b", "c"], "output": ["A", "B", "C"]}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     names = write_sites(folder, table, [[2], [0, 1]])
      ...     found = read_sites(folder)
      >>> names, found.columns["output"], [list(map(int, x)) for x in found.rows]
      (('site-1', 'site-2'), ['C', 'A', 'B'], [[0], [1, 2]])
    """
    if isinstance(table, Population):
        if rows is not None:
            raise TypeError("a population has its clients' rows; rows= is for tables")
        table, rows = table.arrays, _ranges(table.offsets)
    elif rows is None:
        raise TypeError("expected rows=, the row numbers of each client, got None")
    columns = {name: read_column(table, name) for name in column_names(table)}
    first, *_ = columns.values()
    clients = checked_rows(rows, len(first))
    names = _checked_names(sites, len(clients))
    paths = [Path(folder) / _file_of(file, name) for name in names]
    if there := [path for path in paths if path.exists()]:
        raise FileExistsError(f"{there[0]} is there already; choose an empty folder")
    texts = [
        _lines(columns, own, name) for own, name in zip(clients, names, strict=True)
    ]
    for path, text in zip(paths, texts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    return names


def read_sites(
    folder: str | os.PathLike[str],
    *,
    sites: Sequence[str] | None = None,
    file: str = FILE,
    dtypes: Mapping[str, Any] | None = None,
) -> Sites:
    """Reads the rows of all sites; each site is a client.

    Args:
      folder: what they lie in.
      sites: names, in the order of the clients; default all that there are, site-2
        before site-10.
      file: path in the folder, with {site} for the name.
      dtypes: {column: dtype}; JSON has none. A column without one stays a list.

    Returns:
      Names, columns and the rows of each.

    Raises:
      FileNotFoundError: no site, or one of `sites` is missing; says which there are.
      ValueError: a line that is no JSON object, rows with different columns, or values
        that are not of the dtype.
      KeyError: a dtype of no column.
    """
    folder = Path(folder)
    there = _found(folder, file)
    names = tuple(there) if sites is None else _checked_names(sites, len(sites))
    if not names or (missing := [name for name in names if name not in there]):
        lost = f"no file for site {missing[0]!r}" if names else "no site"
        raise FileNotFoundError(
            f"{folder} has {lost} ({file}); there are {list(there) or 'none'}"
        )
    rows, bounds = [], [0]
    for name in names:
        rows += _read_lines(there[name])
        bounds.append(len(rows))
    columns = _columns(rows, there[names[0]])
    for name, dtype in (dtypes or {}).items():
        if name not in columns:
            raise KeyError(f"dtypes names {name!r}, expected one of {list(columns)}")
        columns[name] = _typed(name, columns[name], dtype)
    return Sites(names, columns, _ranges(bounds))


def _ranges(offsets: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The row numbers between neighbouring offsets."""
    return [np.arange(a, b) for a, b in itertools.pairwise(offsets)]


def _checked_names(sites: Sequence[str] | None, n_clients: int) -> tuple[str, ...]:
    """As many different names of files as there are clients."""
    if sites is None:
        return tuple(f"site-{k + 1}" for k in range(n_clients))
    if isinstance(sites, str) or len(sites) != n_clients:
        raise ValueError(f"expected {n_clients} names of sites, got sites={sites!r}")
    for name in sites:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"expected a name of letters, digits, - . _, got {name!r}")
    if len(set(sites)) != len(sites):
        raise ValueError(f"expected each site once, got sites={list(sites)}")
    return tuple(sites)


def _file_of(file: str, site: str) -> str:
    """The path of a site."""
    if file.count(PLACE) != 1:
        raise ValueError(f"expected {{site}} once in file, got file={file!r}")
    return file.replace(PLACE, site)


def _found(folder: Path, file: str) -> dict[str, Path]:
    """{site: its file}, numbers in their order."""
    pattern = _file_of(glob.escape(file).replace(glob.escape(PLACE), PLACE), "*")
    before, after = file.split(PLACE)
    found = {}
    for path in folder.glob(pattern):
        name = path.relative_to(folder).as_posix()
        found[name[len(before) : len(name) - len(after)]] = path

    def in_order(item: tuple[str, Path]) -> list:
        words = re.split(r"(\d+)", item[0])
        return [int(x) if x.isdecimal() else x for x in words]

    return dict(sorted(found.items(), key=in_order))


def _lines(columns: Mapping[str, np.ndarray], rows: np.ndarray, site: str) -> str:
    """The JSON lines of some rows."""
    lines = []
    for row in rows:
        values = {name: _plain(column[row]) for name, column in columns.items()}
        try:
            lines.append(json.dumps(values, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"row {row} of {site} has a value that JSON lacks ({error}): "
                f"{checks.shown(values)}"
            ) from error
    return "".join(f"{line}\n" for line in lines)


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers as they are, of any shape, and text."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: expected an object, got {row!r:.60}"
            )
        if rows and row.keys() != rows[0].keys():
            raise ValueError(
                f"{path}, line {number}: expected the columns {sorted(rows[0])}, got "
                f"{sorted(row)}"
            )
        rows.append(row)
    return rows


def _columns(rows: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """{name: values}, if all sites have the same names."""
    if not rows:
        raise ValueError(f"{path} and the other sites have no rows")
    names = rows[0].keys()
    if other := [row for row in rows if row.keys() != names]:
        raise ValueError(
            f"expected the columns of {path} at every site, {sorted(names)}, got "
            f"{sorted(other[0])}"
        )
    return {name: [row[name] for row in rows] for name in names}


def _typed(name: str, values: list, dtype: Any) -> np.ndarray:
    """An array of a dtype whose values are those of the file."""
    try:
        plain = np.asarray(values)
        array = plain.astype(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} is not {dtype}: {error}") from error
    whole = np.issubdtype(array.dtype, np.integer)
    if plain.dtype.kind not in "biuf" or (whole and not np.array_equal(array, plain)):
        raise ValueError(f"column {name!r} has values that are not {array.dtype}")
    return array
