"""Tables from the files that people have."""

import csv
import hashlib
import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import datasets
from fedjax_fm.datasets.table import Table, text_column
from fedjax_fm.population.columns import column_names, count_rows
from fedjax_fm.runs.errors import UsageError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
TEXTS = (".txt", ".md")


class Source(NamedTuple):
    """A table and where it comes from.

    Attributes:
      table: anything with named columns of equal length.
      name: of the file, the folder or the data set.
      kind: "jsonl", "csv", "folder of texts" and so on.
      sha256: of the bytes that were read, in hexadecimal.
      notes: what a reader should know, such as that the data are a stand-in.
      client: the column that says who the clients are, where that is known.
      roles: {role: column}, where that is known.
      metrics: names of a benchmark's scores, its authors' first.
    """

    table: Any
    name: str
    kind: str
    sha256: str
    notes: tuple[str, ...] = ()
    client: str = ""
    roles: Mapping[str, str] = MappingProxyType({})
    metrics: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [str(name) for name in column_names(self.table)]

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """{column: names of its numbers}, where `datasets` has kept them."""
        return class_names(self.table)


def class_names(table: Any) -> dict[str, tuple[str, ...]]:
    """Names of the classes that a column's numbers stand for.

    Args:
      table: a data set of `datasets`, or a table of pyarrow that it has written, whose
        schema says under "huggingface" what the columns are.

    Returns:
      {column: names, in order of their numbers}; empty for other tables.

    Example:
      >>> class_names({"label": [0, 1]})
      {}
    """
    features = getattr(table, "features", None)
    if features is not None:
        named = {
            str(name): getattr(one, "names", None) for name, one in features.items()
        }
        return {name: tuple(names) for name, names in named.items() if names}
    metadata = getattr(getattr(table, "schema", None), "metadata", None) or {}
    try:
        written = json.loads(metadata.get(b"huggingface", b"{}"))
        features = written.get("info", {}).get("features", {})
        return {
            str(name): tuple(map(str, one["names"]))
            for name, one in features.items()
            if isinstance(one, dict) and one.get("_type") == "ClassLabel"
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f'the schema\'s metadata "huggingface" cannot be read ({error}); write the '
            "file again without it"
        ) from error


class Known(NamedTuple):
    """A data set of the package, or of a registry package.

    Attributes:
      load: reads it.
      client: the column that says who the clients are; "" where none does.
      roles: {role: column}.
    """

    load: Callable[[], Table]
    client: str
    roles: Mapping[str, str]


_PAIR = {"text": "text", "text_pair": "text_pair", "label": "label"}
_CLASS = {"text": "text", "label": "label"}
KNOWN = {
    "chitchat": Known(datasets.load_chitchat, "person", {"messages": "messages"}),
    "intents": Known(datasets.load_intents, "language", _CLASS),
    "sentiment": Known(datasets.load_sentiment, "", _CLASS),
    "shakespeare": Known(datasets.load_shakespeare, "client", {"text": "speech"}),
    "word-senses": Known(datasets.load_word_senses, "", _PAIR),
}
# The normal forms of named benchmarks, the first that fits.
_NORMAL = (
    {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    {"messages": "messages"},
    _PAIR,
    _CLASS,
    {"image": "image", "label": "label"},
    {"text": "text"},
)


def read(place: str, split: str = "train", stand_in: bool = False) -> Source:
    r"""Reads a file, a folder or a data set by name.

    Args:
      place: see `Settings.data`.
      split: of a data set of the hub by name.
      stand_in: takes the made-up rows of a named benchmark.

    Returns:
      The table.

    Raises:
      UsageError: nothing there, a file of an unknown kind, or one that is damaged; the
        message names the line.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
      >>> _ = path.write_text('{"text": "one"}\n{"text": "two"}\n')
      >>> source = read(str(path))
      >>> source.columns, source.kind
      (['text'], 'jsonl')
    """
    path = Path(place).expanduser()
    if stand_in and (path.exists() or place in KNOWN):
        raise UsageError(f"{place!r} is no named benchmark, and has no stand-in")
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path)
    if place in KNOWN:
        return _of_package(place)
    if _is_benchmark(place):
        return _benchmark(place, stand_in)
    looks_like_file = path.suffix.lower() in READERS or len(path.parts) > 2
    if looks_like_file or place.startswith((".", "~")):
        raise UsageError(f"there is no file or folder {place!r}")
    if stand_in:
        raise UsageError(f"{place!r} is no named benchmark, and has no stand-in")
    return _of_hub(place, split)


def _of_file(path: Path) -> Source:
    """One file, read by the ending of its name."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise UsageError(f"{path} is of no kind that is read: {known}")
    raw = path.read_bytes()
    table = READERS[suffix](path, raw)
    if not count_rows(table):
        raise UsageError(f"{path} has no rows")
    digest = hashlib.sha256(raw).hexdigest()
    return Source(table=table, name=path.name, kind=suffix[1:], sha256=digest)


def _jsonl(path: Path, raw: bytes) -> dict[str, np.ndarray]:
    """One JSON object a line."""
    rows = []
    for number, line in enumerate(_text(path, raw).split("\n"), 1):
        if line.strip():
            rows.append(_object(path, line, f"line {number}"))
    return _columns(path, rows)


def _json(path: Path, raw: bytes) -> dict[str, np.ndarray]:
    """A list of objects, an object of lists, or an object with one list of objects."""
    try:
        found = json.loads(_text(path, raw))
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path} is no JSON: {error}; of JSON lines? call it .jsonl"
        ) from error
    if isinstance(found, dict):
        lists = {
            name: value for name, value in found.items() if isinstance(value, list)
        }
        rows = [
            value for value in lists.values() if value and isinstance(value[0], dict)
        ]
        if len(rows) == 1:
            found = rows[0]
        elif lists and len(lists) == len(found) and not rows:
            return {name: _column(value) for name, value in lists.items()}
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UsageError(f"{path}: expected a list of objects, one an example")
    return _columns(path, found)


def _object(path: Path, line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, {where}: no JSON ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}, {where}: expected an object, got {line.strip():.60}")
    return found


def _columns(path: Path, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as columns; a key that a row lacks is None there."""
    if not rows:
        raise UsageError(f"{path} has no rows")
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise UsageError(f"{path}: the objects have no keys")
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    """Whole numbers and numbers as arrays, all else as objects."""
    kinds = {type(value) for value in values}
    if kinds == {int} or kinds == {float} or kinds == {int, float}:
        return np.array(values)
    return text_column(values)


def _csv(path: Path, raw: bytes) -> dict[str, np.ndarray]:
    """A table with a line of names; an empty cell is None."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    text = io.StringIO(_text(path, raw), newline="")  # only \n and \r end a line
    lines = csv.reader(text, delimiter=separator)
    try:
        names, *rows = list(lines)
    except (csv.Error, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a table: {error}") from error
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path}: two columns are called {twice[0]!r}; rename one")
    rows = [row for row in rows if row]  # empty lines
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise UsageError(
                f"{path}, row {number}: {len(row)} cells, the first line names "
                f"{len(names)} columns"
            )
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return {
        name: text_column([cell if cell else None for cell in column])
        for name, column in zip(names, columns, strict=True)
    }


def _parquet(path: Path, raw: bytes) -> Any:
    pq = _imported("pyarrow.parquet", "pyarrow")
    try:
        return pq.read_table(path)
    except Exception as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}") from error


def _arrow(path: Path, raw: bytes) -> Any:
    """An IPC file or stream, which datasets and feather write."""
    arrow = _imported("pyarrow", "pyarrow")
    ipc = _imported("pyarrow.ipc", "pyarrow")
    for opened in (ipc.open_file, ipc.open_stream):
        try:
            return opened(arrow.BufferReader(raw)).read_all()
        except arrow.ArrowInvalid:
            continue
    raise UsageError(f"{path} cannot be read as an Arrow file or stream")


READERS: dict[str, Callable[[Path, bytes], Any]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}


def _of_folder(folder: Path) -> Source:
    """A data set that was saved to disk, one table in files, texts, or images."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _saved(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if found := [path for path in paths if path.suffix.lower() in IMAGES]:
        return _of_images(folder, found)
    if found := [path for path in paths if path.suffix.lower() in TEXTS]:
        return _of_texts(folder, found)
    tables = [path for path in paths if path.suffix.lower() in READERS]
    if len(tables) == 1:
        return _of_file(tables[0])
    names = [path.name for path in (tables or paths)[:5]]
    raise UsageError(
        f"{folder} holds neither images nor texts ({', '.join(TEXTS)}) nor one table; "
        f"found {names or 'nothing'}; give the path of one file"
    )


def _of_texts(folder: Path, paths: list[Path]) -> Source:
    """Columns `text`, `file` and `folder`, the name of the folder above the file."""
    texts = [_text(path, path.read_bytes()) for path in paths]
    table = {
        "text": text_column(texts),
        "file": text_column([str(path.relative_to(folder)) for path in paths]),
        "folder": text_column([path.parent.name for path in paths]),
    }
    digest = _digest(paths)
    return Source(table=table, name=folder.name, kind="folder of texts", sha256=digest)


def _of_images(folder: Path, paths: list[Path]) -> Source:
    """Columns `image` (paths), `label`, the name of the folder above, and `file`."""
    if any(path.parent == folder for path in paths):
        raise UsageError(
            f"{folder} holds images that lie in no folder of their class: put each image "
            "into a folder that is named after its class"
        )
    table = {
        "image": text_column(paths),
        "label": text_column([path.parent.name for path in paths]),
        "file": text_column([str(path.relative_to(folder)) for path in paths]),
        "folder": text_column([path.relative_to(folder).parts[0] for path in paths]),
    }
    digest = _digest(paths)
    return Source(table=table, name=folder.name, kind="folder of images", sha256=digest)


def _saved(folder: Path) -> Source:
    """What `datasets.save_to_disk` wrote."""
    library = _imported("datasets", "'fedjax-fm[hub]'")
    found = library.load_from_disk(str(folder))
    if hasattr(found, "keys"):
        names = list(found.keys())
        if len(names) != 1:
            raise UsageError(
                f"{folder} holds the splits {names}; give the folder of one"
            )
        found = found[names[0]]
    paths = sorted(folder.rglob("*.arrow"))
    return Source(
        table=found, name=folder.name, kind="datasets folder", sha256=_digest(paths)
    )


def _of_package(name: str) -> Source:
    """A data set that ships, or lies in a registry package."""
    known = KNOWN[name]
    table = known.load()
    return Source(
        table=table,
        name=name,
        kind=str(table.provenance["kind"]),
        sha256=str(table.provenance["sha256"]),
        client=known.client,
        roles=known.roles,
    )


def _is_benchmark(name: str) -> bool:
    """Whether this is the name of a benchmark, or of several of a family.

    Raises:
      UsageError: of several.
    """
    try:
        datasets.describe(name)
    except ValueError as error:
        if "family" in str(error):
            raise UsageError(str(error)) from error
        return False
    return True


def _benchmark(name: str, stand_in: bool) -> Source:
    """The training rows of a named benchmark."""
    found = datasets.load(name, source="stand-in" if stand_in else "auto")
    names = set(found.train.columns)
    kind = str(found.provenance["kind"])
    notes = (f"THE DATA ARE A STAND-IN of {name}: made up, and of the same schema",)
    return Source(
        table=found.train,
        name=found.benchmark.name,
        kind=f"benchmark, {kind}",
        sha256=str(found.provenance["sha256"]),
        notes=notes if kind == "stand-in" else (),
        client="client",
        roles=next((roles for roles in _NORMAL if set(roles.values()) <= names), {}),
        metrics=found.benchmark.metric,
    )


def _of_hub(name: str, split: str) -> Source:
    """A data set of the hub."""
    library = _imported("datasets", "'fedjax-fm[hub]'")
    try:
        found = library.load_dataset(name, split=split)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{name!r} is no file or folder, and not to be had as a data set of the hub "
            f"({type(error).__name__}: {first:.200}); without a network, download its "
            "files and give their path"
        ) from error
    digest = hashlib.sha256(str(found._fingerprint).encode()).hexdigest()
    note = "the hash is of the fingerprint that `datasets` gives, not of the bytes"
    return Source(
        table=found, name=name, kind="hub data set", sha256=digest, notes=(note,)
    )


def _digest(paths: list[Path]) -> str:
    """One hash for several files: of their names and hashes, in order."""
    total = hashlib.sha256()
    for path in paths:
        own = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{own}  {path.name}\n".encode())
    return total.hexdigest()


def _text(path: Path, raw: bytes) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}; convert it first") from error


def _imported(module: str, requirement: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"reading this needs {module.partition('.')[0]}: pip install {requirement}"
        ) from error


def images(
    paths: Iterator[Any] | list[Any], size: int, channels: int = 3
) -> np.ndarray:
    """Images as numbers between 0 and 1, cut to a square and resized.

    Args:
      paths: of n files, or images of Pillow, or arrays u8[h, w] or u8[h, w, 3].
      size: side of the square, in pixels.
      channels: 3, or 1 for grey.

    Returns:
      f32[n, size, size, channels].

    Raises:
      UsageError: a file that is no image.
    """
    from PIL import Image, UnidentifiedImageError

    found = []
    for place in paths:
        try:
            opened = place if isinstance(place, Image.Image) else _opened(place, Image)
            opened = opened.convert("RGB" if channels == 3 else "L")
        except (OSError, UnidentifiedImageError) as error:
            raise UsageError(f"{place} cannot be read as an image: {error}") from error
        side = min(opened.size)
        left, top = (opened.width - side) // 2, (opened.height - side) // 2
        square = opened.crop((left, top, left + side, top + side))
        small = square.resize((size, size), Image.Resampling.BILINEAR)
        array = np.asarray(small, np.float32) / 255
        found.append(array.reshape(size, size, channels))
    return np.stack(found)


def _opened(place: Any, image: Any) -> Any:
    """A file or an array as an image of Pillow."""
    if isinstance(place, np.ndarray):
        return image.fromarray(place)
    return image.open(place)
