"""Real rows: what ships with the package, a folder of files, the hub and its cache."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_fm.datasets.named.benchmark import Benchmark, Row
from fedjax_fm.datasets.shakespeare import load_shakespeare
from fedjax_fm.datasets.table import DataFileError

# How a file's name ends, and what `datasets` calls its format.
_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
_COMMIT = re.compile("[0-9a-f]{40}")


class Found(NamedTuple):
    """Rows and where they are from.

    Attributes:
      train: rows as the source gives them.
      test: rows of the test split; None where there is none.
      kind: "real" or "stand-in".
      origin: in words.
      revision: the commit of the hub, as a hash; None where there is none or it could
        not be found out.
    """

    train: Iterable[Row]
    test: Iterable[Row] | None
    kind: str
    origin: str
    revision: str | None


def read(
    benchmark: Benchmark, source: str, cache: str | os.PathLike[str] | None
) -> Found:
    """Real rows of a benchmark.

    Args:
      benchmark: which.
      source: "auto" or "hub".
      cache: a folder of files, or None.

    Raises:
      DataFileError: there are none; says how to get them, and how to ask for a
        stand-in.
      ImportError: the extra `hub` is not installed.
    """
    if source == "auto" and benchmark.stand_in is None:
        table = load_shakespeare()
        columns = [table[name].tolist() for name in benchmark.hub.columns]
        rows = [
            dict(zip(benchmark.hub.columns, values, strict=True))
            for values in zip(*columns, strict=True)
        ]
        return Found(
            train=rows, test=None, kind="real", origin="this package", revision=None
        )
    if source == "auto" and cache is not None:
        return _from_folder(benchmark, Path(cache).expanduser())
    if benchmark.hub.id is None:
        raise _unavailable(
            benchmark, "it is on no hub; give cache=FOLDER with the authors' files"
        )
    return _from_hub(benchmark)


def _unavailable(benchmark: Benchmark, why: str) -> DataFileError:
    """The error for real rows that cannot be had."""
    cure = (
        'rows of the same schema, made up and announced as such, are source="stand-in"'
    )
    if benchmark.stand_in is None:
        cure = 'source="auto" has the rows that ship with the package'
    return DataFileError(
        f"there are no real rows of {benchmark.name}: {why}. Nothing takes their place "
        f"unasked: {cure}"
    )


def _datasets() -> Any:
    """The package `datasets`."""
    if importlib.util.find_spec("datasets") is None:
        raise ImportError(
            "real rows are read with the package datasets: pip install 'fedjax-fm[hub]'"
        )
    import datasets

    return datasets


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the hub."""
    value = os.environ.get("HF_HUB_OFFLINE", "0").lower()
    return value in ("1", "true", "yes", "on")


def _from_hub(benchmark: Benchmark) -> Found:
    """Rows of the hub, or of its local cache."""
    datasets, hub = _datasets(), benchmark.hub
    splits = {}
    config = datasets.DownloadConfig(local_files_only=is_offline())
    for split in filter(None, (hub.train, hub.test)):
        try:
            splits[split] = datasets.load_dataset(
                hub.id,
                hub.config,
                split=split,
                revision=hub.revision,
                download_config=config,
            )
        except Exception as error:  # of the network, the hub or the files: many kinds
            first = (str(error).splitlines() or [""])[0]
            forbidden = " (HF_HUB_OFFLINE forbids the hub)" if is_offline() else ""
            raise _unavailable(
                benchmark,
                f"neither the hub's local cache nor the hub gave {hub.id}{forbidden} "
                f"({type(error).__name__}: {first}); give cache=FOLDER with its files",
            ) from error
    commits = {commit_of(dataset) for dataset in splits.values()}
    # Without a network the package takes the latest commit in its cache, unasked.
    is_pinned = is_commit(hub.revision)
    if len(commits) > 1 or (is_pinned and commits != {hub.revision}):
        expected = hub.revision if is_pinned else "one commit for all splits"
        raise _unavailable(
            benchmark,
            f"expected {expected} of {hub.id}, got {sorted(map(str, commits))}; clear "
            "the hub's local cache of it",
        )
    return Found(
        train=splits[hub.train],
        test=splits.get(hub.test),
        kind="real",
        origin=f"hub {hub.id}",
        revision=commits.pop(),
    )


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, and not a branch or a tag.

    Args:
      revision: of the hub; None: none is named.

    Example:
      >>> is_commit("main"), is_commit("0" * 40)
      (False, True)
    """
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def commit_of(dataset: Any) -> str | None:
    """The commit that a data set of the hub was read from.

    The package `datasets` names the folder of its cache after it; for other data it is
    named after the reader, with 64 digits.

    Args:
      dataset: a `datasets.Dataset`.

    Returns:
      40 hexadecimal digits; None where it cannot be told.

    Example:
      >>> from types import SimpleNamespace
      >>> place = f"cache/nyu-mll___glue/sst2/0.0.0/{'0' * 39}1/glue-train.arrow"
      >>> commit_of(SimpleNamespace(cache_files=[{"filename": place}]))[-3:]
      '001'
    """
    folders = {Path(entry["filename"]).parent.name for entry in dataset.cache_files}
    commits = {name for name in folders if _COMMIT.fullmatch(name)}
    return commits.pop() if len(commits) == 1 else None


def _from_folder(benchmark: Benchmark, folder: Path) -> Found:
    """Rows of files in a folder, named as on the hub."""
    if not folder.is_dir():
        raise DataFileError(f"expected cache= to be a folder, got {str(folder)!r}")
    hub = benchmark.hub
    if hub.config and (folder / hub.config).is_dir():
        folder = folder / hub.config
    test = _split_files(folder, hub.test) if hub.test else None
    return Found(
        train=_rows_of(_split_files(folder, hub.train)),
        test=_rows_of(test) if test is not None else None,
        kind="real",
        origin=f"files in {folder.name}",
        revision=None,
    )


def _split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split ("train+test": of both), in the order of their names.

    A folder with one file and no name of a split in it is the training split.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in _FORMATS)
    found: list[Path] = []
    for part in split.split("+"):
        of_part = [path for path in files if _is_of(path, folder, part)]
        if not of_part and part == "train" and len(files) == 1:
            of_part = files
        if not of_part:
            names = [path.name for path in files]
            raise DataFileError(
                f"expected a file of the split {part!r} in {str(folder)!r}, named "
                f"{part}*.parquet (or .jsonl, .json, .csv), got {names}"
            )
        found += of_part
    return found


def _is_of(path: Path, folder: Path, split: str) -> bool:
    """Whether a file, or the folder that it is in, is named after a split."""
    parts = path.relative_to(folder).parts
    pattern = re.compile(rf"{re.escape(split)}(?![a-z_])")
    return any(pattern.match(part) for part in parts)


def _rows_of(paths: list[Path]) -> Iterator[Row]:
    """The rows of some files, one after the other."""
    for path in paths:
        yield from _of_clients(path) or _of_file(path)


def _of_clients(path: Path) -> list[Row] | None:
    """Rows of a file {client: [rows]}, each with its client; None for another file."""
    if path.suffix != ".json":
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None  # a row a line
    lists = isinstance(content, dict) and [*map(type, content.values())]
    if not lists or set(lists) != {list}:
        return None
    return [
        {**row, "client": client} for client, rows in content.items() for row in rows
    ]


def _of_file(path: Path) -> Iterable[Row]:
    """Rows of one file by the package `datasets`."""
    kind = _FORMATS[path.suffix]
    return _datasets().load_dataset(kind, data_files=str(path), split="train")
