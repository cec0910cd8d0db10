"""Loads a named benchmark: from the package, a folder, the hub, or as a stand-in."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fedjax_fm import checks
from fedjax_fm.datasets.named import real
from fedjax_fm.datasets.named.benchmark import Benchmark, Row
from fedjax_fm.datasets.named.normal import (
    deal,
    digest,
    examples_of,
    hold_out,
    limited,
    table_of,
)
from fedjax_fm.datasets.named.stand_ins import sizes
from fedjax_fm.datasets.named.table import find
from fedjax_fm.datasets.table import DataFileError, Table

Source = Literal["auto", "hub", "stand-in"]


@dataclass(frozen=True, eq=False)
class NamedData:
    """The rows of a benchmark in normal form, and whose they are.

    Attributes:
      train: rows with a client each; column `client` is text.
      test: what is held out. Its `client` is "" but where clients, their latest rows or
        a split by client are held out.
      partitioner: gives the clients of `train`, in order of first appearance:
        `Population.from_table(data.train, by=data.partitioner, columns=[...])`.
      benchmark: the row of the table: settings, metric, template.
      provenance: `kind` ("real" or "stand-in"), `sha256` of the rows in normal form,
        `revision` (the commit that was read), `asked_revision`, `pinned`, `seed`,
        `limit`, `clients` (those with rows), `dropped` ({reason: rows}) and others.
    """

    train: Table
    test: Table
    partitioner: Any
    benchmark: Benchmark
    provenance: dict[str, Any]

    @property
    def client(self) -> np.ndarray:
        """str[rows]: the client of each training row."""
        return self.train["client"]


def load(
    name: str,
    *,
    source: Source = "auto",
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    revision: str | None = None,
) -> NamedData:
    """Loads a benchmark by name: training rows, test rows, clients, settings.

    Rows come in one normal form, whatever the data set's own columns are: `messages`;
    or `text` (and `text_pair`) with `label`; or `image` with `label`; or `prompt`,
    `chosen`, `rejected`; or `text` alone; always with `client`. Stand-in rows have the
    same schema, are made from the seed alone, and can be learnt. They say nothing about
    the real data, and `provenance["kind"]` says "stand-in".

    Args:
      name: as in `list_names()`, or an alias ("fed-aya", "dolly", "sst2").
      source: "auto" takes what ships with the package, or else the files in `cache`, or
        else the hub and its local cache, and refuses where none is there. "hub" takes
        the hub and its local cache alone. "stand-in" makes rows up. HF_HUB_OFFLINE=1
        forbids the hub, and leaves its cache.
      seed: of the partition, of random rows, and of a stand-in.
      cache: a folder with the data set's files (Parquet, JSON lines, JSON, CSV), named
        as on the hub, so that a file's name begins with its split; FedLLM-Bench's
        {client: [rows]} files are read, too. None: there is no such folder.
      limit: at most so many rows of each split of the source. They are drawn; natural
        clients keep a share each where that makes two rows a client, else the first
        ones are taken whole.
      revision: of the data set on the hub: a commit of 40 digits, which pins the rows,
        or a branch or tag, of which the commit that was found is recorded. None: the
        table's, which pins none so far.

    Returns:
      `NamedData`.

    Raises:
      ValueError: an unknown name, with the nearest one, a limit below the number of
        clients, or a revision of rows that are not the hub's.
      DataFileError: real rows cannot be had (says what to do), or have another schema.
      ImportError: the extra `hub` is not installed.

    Example:
      >>> data = load("flowertune/finance", source="stand-in", limit=200)
      >>> len(data.train), len(set(data.client)), data.provenance["kind"]
      (196, 50, 'stand-in')
      >>> data.train["messages"][0][1]["content"] in ("negative", "neutral", "positive")
      True
    """
    checks.choice("source", source, get_args(Source))
    checks.whole("seed", seed, least=0)
    if limit is not None:
        checks.whole("limit", limit, least=1)
    benchmark = _of_revision(find(name), revision, source, cache)
    if source == "stand-in":
        found = _made_up(benchmark, seed, limit)
    else:
        found = real.read(benchmark, source, cache)
    return _named_data(benchmark, found, seed, limit)


def _of_revision(
    benchmark: Benchmark,
    revision: str | None,
    source: str,
    cache: str | os.PathLike[str] | None,
) -> Benchmark:
    """The benchmark with another revision than the table's."""
    if revision is None:
        return benchmark
    if not checks.text("revision", revision).strip():
        raise ValueError("expected revision as a commit, branch or tag, got none")
    of_package = benchmark.stand_in is None and source == "auto"
    of_folder = cache is not None and source == "auto"
    on_hub = benchmark.hub.id is not None
    if source == "stand-in" or of_package or of_folder or not on_hub:
        raise ValueError(
            f"revision={revision!r} is of the hub, and {benchmark.name} is not read from "
            "there: leave it out"
        )
    hub = dataclasses.replace(benchmark.hub, revision=revision)
    return dataclasses.replace(benchmark, hub=hub)


def _made_up(benchmark: Benchmark, seed: int, limit: int | None) -> real.Found:
    """Stand-in rows of both splits."""
    if benchmark.stand_in is None:
        raise ValueError(
            f"{benchmark.name} ships with the package and needs no stand-in; leave "
            'source="auto"'
        )
    train = _split_made_up(benchmark, seed, limit, test=False)
    test = _split_made_up(benchmark, seed, limit, test=True)
    return real.Found(
        train=train,
        test=test if benchmark.held.how == "split" else None,
        kind="stand-in",
        origin="made by fedjax_fm from the seed",
        revision=None,
    )


def _split_made_up(
    benchmark: Benchmark, seed: int, limit: int | None, *, test: bool
) -> Sequence[Row]:
    """Stand-in rows of one split; none where the hub has no test split."""
    n_rows = benchmark.test_rows if test else benchmark.rows
    if n_rows == 0 or benchmark.stand_in is None:
        return []
    return benchmark.stand_in(sizes.request(benchmark, seed, limit, test=test))


def _named_data(
    benchmark: Benchmark, found: real.Found, seed: int, limit: int | None
) -> NamedData:
    """Normal form, limit, held-out rows and clients."""
    rng = np.random.default_rng([seed, 1])
    train, dropped = examples_of(benchmark, found.train)
    train = limited(benchmark, train, limit, rng)
    how = benchmark.held.how
    if how == "split":
        if found.test is None:
            raise DataFileError(
                f"{benchmark.name} is tested on a split of its own "
                f"({benchmark.hub.test!r}), which is not in {found.origin}"
            )
        test, more = examples_of(benchmark, found.test)
        for reason, number in more.items():
            key = f"{reason} (test)"
            dropped[key] = number
        test = limited(benchmark, test, limit, rng)
        train, left, rule = deal(benchmark, train, seed)
    elif how == "clients":
        everybody, left, rule = deal(benchmark, train, seed)
        train, test = hold_out(benchmark, everybody, rng)
    else:
        train, test = hold_out(benchmark, train, rng)
        train, left, rule = deal(benchmark, train, seed)
    if left:
        dropped["dealt to no client"] = left
    provenance = {
        "name": benchmark.name,
        "kind": found.kind,
        "origin": found.origin,
        "citation": benchmark.citation,
        "licence": _licence(benchmark, found.kind),
        "revision": found.revision,
        "asked_revision": benchmark.hub.revision,
        "pinned": found.revision is not None and real.is_commit(benchmark.hub.revision),
        "seed": seed,
        "limit": limit,
        "partition": repr(rule),
        "clients": len({example["client"] for example in train}),
        "dropped": dropped,
        "sha256": digest(benchmark, train, test),
    }
    from fedjax_fm.population import NaturalIdPartitioner

    return NamedData(
        train=table_of(benchmark, train, provenance),
        test=table_of(benchmark, test, provenance),
        partitioner=NaturalIdPartitioner("client"),
        benchmark=benchmark,
        provenance=provenance,
    )


def _licence(benchmark: Benchmark, kind: str) -> str:
    """Of the rows that are there: a stand-in is this package's."""
    if kind == "stand-in":
        return "Apache-2.0, with the licences of the shipped sentences (MIT)"
    return benchmark.licence or "not known: see the data"
