"""The table of named benchmarks: find one, list them, say what is known of one."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from fedjax_fm import checks
from fedjax_fm.datasets.named import (
    classic,
    fedllm,
    flowertune,
    glue,
    instructions,
    pfl,
)
from fedjax_fm.datasets.named.benchmark import Benchmark
from fedjax_fm.spelling import nearest

_ALL = (
    *flowertune.BENCHMARKS,
    *fedllm.BENCHMARKS,
    *pfl.BENCHMARKS,
    *instructions.BENCHMARKS,
    *glue.BENCHMARKS,
    *classic.BENCHMARKS,
)

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in _ALL}

# As people say them, for the name in the table.
ALIASES: dict[str, str] = {
    "fed-aya": "fedllm/aya",
    "fed-chatbotit": "fedllm/chatbot-it",
    "fed-chatbotpa": "fedllm/chatbot-pa",
    "fed-wildchat": "fedllm/wildchat-single",
    "fed-wildchat-single": "fedllm/wildchat-single",
    "fed-wildchat-multi": "fedllm/wildchat-multi",
    "alpaca": "pfl/alpaca",
    "aya": "pfl/aya",
    "oasst2": "pfl/oasst2",
    "openassistant": "pfl/oasst2",
    "dolly": "dolly/shepherd",
    "dolly-15k": "dolly/shepherd",
    "databricks-dolly-15k": "dolly/shepherd",
    "natural-instructions": "ni/fedkseed",
    "ni": "ni/fedkseed",
    "commonsense": "commonsense/fslora",
    "commonsense-170k": "commonsense/fslora",
    "code-alpaca": "flowertune/code",
    "medical-flashcards": "flowertune/medical",
    "fingpt": "flowertune/finance",
    "20newsgroups": "20news",
    "glue/frlora/20news": "20news",
    "stack-overflow": "stackoverflow",
    "emnist": "femnist",
    "cifar-10": "cifar10",
    "cifar-100": "cifar100",
    "sst-2": "glue/sst2",
    "sts-b": "glue/stsb",
    **{task: f"glue/{task}" for task in glue.TASKS},
}


def find(name: str) -> Benchmark:
    """The benchmark of a name or of an alias; upper and lower case are alike.

    Args:
      name: as in `list_names()`, or as people say it ("fed-aya", "sst2").

    Returns:
      The row of the table.

    Raises:
      ValueError: an unknown name, with the nearest known one; or a family of several
        ("glue/fedsa"), with what is in it.

    Example:
      >>> find("sst2").name, find("Fed-Aya").name
      ('glue/sst2', 'fedllm/aya')
      >>> find("flowertune/finanse")
      Traceback (most recent call last):
      ...
      ValueError: unknown benchmark 'flowertune/finanse'; did you mean
      'flowertune/finance'? ...
    """
    checks.text("name", name)
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = ALIASES.get(key, key)
    if key in BENCHMARKS:
        return BENCHMARKS[key]
    family = [known for known in BENCHMARKS if known.startswith(f"{key}/")]
    if family:
        raise ValueError(
            f"{name!r} is a family of benchmarks; name one of {', '.join(family)}"
        )
    known = [*BENCHMARKS, *ALIASES]
    raise ValueError(nearest(key, known, "benchmark"))


def list_names() -> list[str]:
    """The names of all benchmarks, in alphabetical order; aliases are not among them.

    Example:
      >>> [name for name in list_names() if name.startswith("flowertune/")]
      ['flowertune/code', 'flowertune/finance', 'flowertune/general', 'flowertune/medical']
    """
    return sorted(BENCHMARKS)


def describe(name: str) -> str:
    """What is known of a benchmark, for people.

    Args:
      name: as for `find`.

    Returns:
      Lines of "what: value".

    Raises:
      ValueError: an unknown name.

    Example:
      >>> print(describe("pfl/alpaca"))
      pfl/alpaca: Alpaca by made-up users
      hub: tatsu-lab/alpaca, split train, revision not pinned
      columns: messages, client
      ...
    """
    one = find(name)
    lines = [
        f"{one.name}: {one.title}",
        f"hub: {_where(one)}",
        f"columns: {', '.join((*one.columns, 'client'))}",
        f"rows: {one.rows:,} to train on" + _test_rows(one),
        f"clients: {_clients(one)}",
        f"held out: {_held(one)}",
    ]
    if one.template is not None:
        lines.append(
            f"template: {one.template.name}, SHA-256 {one.template.sha256} "
            f"({one.template.source})"
        )
    lines.append(f"metric: {', '.join(one.metric)}")
    lines += _settings(one)
    lines.append(f"licence: {one.licence or 'not known: see the data'}")
    lines.append(f"citation: {one.citation}")
    if one.stand_in is None:
        lines.append("stand-in: none needed, the data ship with the package")
    wrapper = textwrap.TextWrapper(
        width=88,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,  # names have them
    )
    return "\n".join(map(wrapper.fill, lines))


def markdown_table() -> str:
    """The table of names for a page, in Markdown.

    Returns:
      A row a benchmark: name, data, clients, columns, metric.
    """
    head = "| name | real rows from | clients | columns | metric |\n|---|---|---|---|---|\n"
    cells = [
        f"| `{one.name}` | {_page_source(one)} | {_clients(one)} "
        f"| {', '.join(f'`{column}`' for column in one.columns)} "
        f"| {', '.join(one.metric)} |"
        for one in map(find, list_names())
    ]
    return head + "\n".join(cells)


def _page_source(one: Benchmark) -> str:
    """Where real rows come from, for a cell."""
    if one.stand_in is None:
        return "this package"
    if one.hub.id is None:
        return "files of the authors (`cache=`)"
    config = f", {one.hub.config}" if one.hub.config else ""
    return f"`{one.hub.id}`{config}"


def _where(one: Benchmark) -> str:
    """The hub's data set, its splits and its revision."""
    hub = one.hub
    if one.stand_in is None:
        return "not needed, the data ship with this package"
    unseen = "" if hub.checked else "; id or columns are recalled, not checked"
    if hub.id is None:
        return (
            "none: give load(cache=FOLDER) files with the columns "
            f"{', '.join(hub.columns)}{unseen}"
        )
    config = f", config {hub.config}" if hub.config else ""
    splits = " and ".join(filter(None, (hub.train, hub.test)))
    revision = hub.revision or "not pinned"
    return f"{hub.id}{config}, split {splits}, revision {revision}{unseen}"


def _test_rows(one: Benchmark) -> str:
    """The rows of the test split, if there is one."""
    return f", {one.test_rows:,} to test on" if one.test_rows else ""


def _clients(one: Benchmark) -> str:
    """How rows come to clients, in words."""
    partition, note = one.partition, ""
    if partition.note:
        note = f" ({partition.note})"
    if partition.natural:
        return f"{one.n_clients:,} natural{note}"
    arguments = {
        key: value
        for key, value in partition.arguments.items()
        if key not in ("num_partitions", "partition_by")
    }
    given = ", ".join(f"{key} {value}" for key, value in arguments.items())
    over = partition.arguments.get("partition_by")
    kind = partition.kind.removesuffix("Partitioner")
    parts = [kind + (f" over {over}" if over else "")]
    parts += [given] if given else []
    count = f"{partition.clients:,} by " if partition.clients else ""
    return f"{count}{', '.join(parts)}{note}"


def _held(one: Benchmark) -> str:
    """What is held out, in words."""
    held = one.held
    words = {
        "split": f"the hub's split {one.hub.test}",
        "rows": f"{held.value} of the rows, at random",
        "rows of each": f"{held.value} rows of each category",
        "clients": f"the last {held.value} of the clients",
        "category": f"the category {held.value}",
        "latest": f"the last {held.value} of each client's rows",
    }
    ours = " (this library's choice: the authors test on other data)"
    return words[held.how] + (ours if held.ours else "")


def _settings(one: Benchmark) -> list[str]:
    """The paper's settings that there are, a line each group."""
    fields: dict[str, Any] = {
        entry.name: getattr(one.settings, entry.name)
        for entry in dataclasses.fields(one.settings)
    }
    source, note = fields.pop("source"), fields.pop("note")
    unverified = fields.pop("unverified")
    given = [f"{key} {value}" for key, value in fields.items() if value is not None]
    lines = [f"settings ({source}): {', '.join(given)}"]
    if note:
        lines.append(f"note: {note}")
    if unverified:
        lines.append(f"unverified: {', '.join(unverified)}")
    return lines
