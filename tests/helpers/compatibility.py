"""What the page docs/compatibility.md is made of: tests say what they saw, and a run of
them writes it down.

    pytest -m compatibility --compatibility-page docs/compatibility.md

A test asks for the fixture `compatibility` and calls, after its own assertions,

    compatibility.works("PEFT fields", "rank_pattern") compatibility.refused("PEFT
    fields", "layer_replication", raised)      # raised: of pytest.raises

Rows of a table that no test has are in NOT_TRIED.
"""

import re
from pathlib import Path
from typing import Any

TABLES = {
    "Architectures": "Checkpoints in Hugging Face's format, logits or hidden states against "
    "transformers",
    "Adapters": "Folders in PEFT's format, opened by the other side with equal logits",
    "Checkpoint forms": "How published files differ from the plain form of their architecture",
    "GGUF types": "Blocks of a GGUF file, against the gguf package; architectures, against "
    "transformers",
    "PEFT fields": "Fields of PEFT's LoraConfig, read and written, against PEFT",
    "Template constructs": "Chat templates, rendered beside transformers' apply_chat_template",
    "Table types": "What partitioners and `Population.from_table` take",
    "Partitioners": "flwr-datasets' partitioners",
}
FIRST = {
    "Architectures": "architecture, and a setting",
    "Adapters": "method and model",
    "Checkpoint forms": "form",
    "GGUF types": "type, architecture or tokenizer",
    "PEFT fields": "field",
    "Template constructs": "construct or family",
    "Table types": "table",
    "Partitioners": "partitioner",
}
# What a run leaves in a message: its own folders, and addresses in memory.
TRACES = re.compile(
    r"\S*/pytest-of-[^/]+/pytest-\d+/(popen-gw\d+/)?[^/]+/| at 0x[0-9a-f]+"
)
# table: {row: why}
NOT_TRIED: dict[str, dict[str, str]] = {}


class Compatibility:
    """Collects what one test saw."""

    def __init__(self, properties: list[tuple[str, Any]]):
        self._properties = properties

    def works(self, table: str, row: str, column: str = "") -> None:
        """The test compared `row` with an independent reference."""
        self._add(table, row, column, "works", "")

    def refused(self, table: str, row: str, raised: Any, column: str = "") -> None:
        """The test saw `row` refused; `raised` is what pytest.raises gave."""
        self._add(table, row, column, "refused", str(getattr(raised, "value", raised)))

    def _add(
        self, table: str, row: str, column: str, outcome: str, message: str
    ) -> None:
        if table not in TABLES:
            raise KeyError(f"expected a table of {sorted(TABLES)}, got {table!r}")
        self._properties.append(
            ("compatibility", (table, row, column, outcome, message))
        )


class PageWriter:
    """The pytest plugin that writes the page at the end of a session."""

    def __init__(self, path: str):
        self.path, self.seen = Path(path), []

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" and report.passed:
            self.seen += [
                tuple(value)
                for name, value in report.user_properties
                if name == "compatibility"
            ]

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(page(self.seen), encoding="utf-8")


def page(seen: list[tuple[str, str, str, str, str]]) -> str:
    """The page from all (table, row, column, outcome, message)."""
    lines = [
        "# Compatibility",
        "",
        "Made by `make compatibility` from the tests that passed; do not edit. "
        "*works* means that a test compared the",
        "result with an independent reference; *refused* means an error that "
        "names what was found, quoted here.",
    ]
    for table, title in TABLES.items():
        rows = sorted({entry[1:] for entry in seen if entry[0] == table})
        rows += [
            (row, "", "not tried", why)
            for row, why in sorted(NOT_TRIED.get(table, {}).items())
        ]
        if rows:
            lines += [
                "",
                f"## {table}",
                "",
                f"{title}.",
                "",
                f"| {FIRST[table]} | by | outcome | the message |",
                "|---|---|---|---|",
            ]
            lines += [
                f"| {_cell(row)} | {_cell(column)} | {outcome} | {_cell(why)} |"
                for row, column, outcome, why in rows
            ]
    return "\n".join(lines) + "\n"


def _cell(text: str, most: int = 220) -> str:
    text = " ".join(TRACES.sub("", text).split()).replace("|", "\\|")
    return text if len(text) <= most else text[:most] + " …"
