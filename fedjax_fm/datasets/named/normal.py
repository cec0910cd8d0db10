"""From examples to tables: limit, held-out rows, clients, the digest of the data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from fedjax_fm.datasets.named.benchmark import Benchmark, Dropped, Example, Row
from fedjax_fm.datasets.table import DataFileError, Table, text_column

# Of all columns these have one kind of value; the others hold text or objects.
_OF_NAMES = ("client", "category")


def examples_of(
    benchmark: Benchmark, rows: Iterable[Row]
) -> tuple[list[Example], dict[str, int]]:
    """Parses rows of the hub.

    Args:
      benchmark: whose parser reads them.
      rows: as the hub or a stand-in gives them.

    Returns:
      (examples, {reason: rows that are none}).

    Raises:
      DataFileError: no example, or one without a column of the normal form.
    """
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    for found in benchmark.parse(rows):
        if isinstance(found, Dropped):
            dropped[found.reason] += 1
        else:
            examples.append(found)
    if not examples:
        raise DataFileError(
            f"{benchmark.name}: expected at least one example, got none "
            f"(rows dropped: {dict(dropped)})"
        )
    return examples, dict(dropped)


def limited(
    benchmark: Benchmark,
    examples: list[Example],
    limit: int | None,
    rng: np.random.Generator,
) -> list[Example]:
    """At most `limit` examples, in their order.

    Args:
      benchmark: whether clients are natural.
      examples: all.
      limit: how many at most; None for all.
      rng: draws the rows where clients are not natural.

    Returns:
      Rows drawn at random; of natural clients the first rows of each, all in the same
      proportion and at least one, where that makes two a client; else the first clients
      whose rows fit, the last one cut.
    """
    if limit is None or len(examples) <= limit:
        return examples
    if not benchmark.partition.natural:
        kept = rng.permutation(len(examples))[:limit]
        return [examples[k] for k in np.sort(kept).tolist()]
    clients = _groups(examples, "client")
    spare = limit - len(clients)
    if spare < len(clients):
        kept = np.concatenate(clients)[:limit]
    else:
        share = spare / (len(examples) - len(clients))
        parts = [rows[: 1 + int(share * (len(rows) - 1))] for rows in clients]
        kept = np.concatenate(parts)
    return [examples[k] for k in np.sort(kept).tolist()]


def hold_out(
    benchmark: Benchmark, examples: list[Example], rng: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """Splits examples by the benchmark's rule.

    Args:
      benchmark: its `held`.
      examples: all.
      rng: draws rows, where the rule does.

    Returns:
      (training, test), each in the order of `examples`.

    Raises:
      ValueError: one of them is empty.
    """
    held = benchmark.held
    n = len(examples)
    is_test = np.zeros(n, bool)
    if held.how == "rows":
        free = np.arange(n)
        if benchmark.partition.natural:  # each client keeps its first row
            free = np.concatenate([rows[1:] for rows in _groups(examples, "client")])
        is_test[rng.permutation(free)[: max(round(held.value * n), 1)]] = True
    elif held.how == "category":
        is_test[:] = [example["category"] == held.value for example in examples]
    elif held.how == "rows of each":
        for rows in _groups(examples, "category"):
            is_test[rng.permutation(rows)[: held.value]] = True
    elif held.how == "latest":
        for rows in _groups(examples, "client"):
            is_test[rows[len(rows) - round(held.value * len(rows)) :]] = True
    else:  # "clients", in the order in which they first appear
        clients = list(dict.fromkeys(example["client"] for example in examples))
        last = set(clients[int((1 - held.value) * len(clients)) :])
        is_test[:] = [example["client"] in last for example in examples]
    sides = [example for example, out in zip(examples, is_test, strict=True) if not out]
    test = [example for example, out in zip(examples, is_test, strict=True) if out]
    if not sides or not test:
        raise ValueError(
            f"{benchmark.name}: {len(sides)} rows to train on and {len(test)} to test "
            f"on, of {n}; raise limit"
        )
    return sides, test


def deal(
    benchmark: Benchmark, examples: list[Example], seed: int
) -> tuple[list[Example], int, Any]:
    """Gives each example its client by the benchmark's partition.

    Args:
      benchmark: its `partition`.
      examples: those that are dealt.
      seed: of the partitioner.

    Returns:
      (examples with a client, in their order; how many nobody got; the partitioner).

    Raises:
      ValueError: fewer examples than clients.
    """
    partition = benchmark.partition
    rule = partition.build(seed, len(examples))
    if partition.natural:
        return examples, 0, rule
    if partition.clients and len(examples) < partition.clients:
        raise ValueError(
            f"{benchmark.name} has {partition.clients} clients, and {len(examples)} "
            "rows are left for them; raise limit"
        )
    names = ("label", "category")
    columns = {
        name: np.array([example[name] for example in examples])
        for name in names
        if name in examples[0]
    }
    columns["row"] = np.arange(len(examples))
    client: dict[int, str] = {}
    for number, rows in enumerate(rule.partition(columns)):
        client.update(dict.fromkeys(rows.tolist(), str(number)))
    dealt = [{**examples[k], "client": client[k]} for k in sorted(client)]
    return dealt, len(examples) - len(dealt), rule


def table_of(
    benchmark: Benchmark, examples: list[Example], provenance: dict[str, Any]
) -> Table:
    """A table of the normal form.

    Args:
      benchmark: its columns.
      examples: one a row.
      provenance: of the data.

    Returns:
      `benchmark.columns` and `client`; a client that there is not is "".
    """
    columns = {
        name: _column(name, [example[name] for example in examples])
        for name in benchmark.columns
    }
    columns["client"] = _column(
        "client", [example.get("client", "") for example in examples]
    )
    return Table(columns, {**provenance, "rows": len(examples)})


def digest(benchmark: Benchmark, *splits: list[Example]) -> str:
    """SHA-256 of the rows in normal form, clients included.

    Args:
      benchmark: its columns.
      *splits: examples.

    Returns:
      In hexadecimal; the same for the same rows in the same order.
    """
    hasher = hashlib.sha256()
    for examples in splits:
        hasher.update(b"\x00split\x00")
        for example in examples:
            for name in (*benchmark.columns, "client"):
                hasher.update(_bytes(example.get(name, "")))
    return hasher.hexdigest()


def _bytes(value: Any) -> bytes:
    """The bytes of one value, with its shape where it is an array."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _column(name: str, values: list[Any]) -> np.ndarray:
    """One column, of the type that the normal form has."""
    if name in _OF_NAMES:
        return np.array([str(value) for value in values])
    if name == "label":
        is_score = any(isinstance(value, float) for value in values)
        return np.array(values, np.float32 if is_score else np.int32)
    if values and isinstance(values[0], str):
        return text_column(values)
    column = np.empty(len(values), dtype=object)
    for k, value in enumerate(values):
        column[k] = value
    return column


def _groups(examples: list[Example], name: str) -> list[np.ndarray]:
    """Row numbers of each value of a column, ascending."""
    rows: dict[Any, list[int]] = {}
    for k, example in enumerate(examples):
        rows.setdefault(example[name], []).append(k)
    return [np.array(group) for group in rows.values()]
