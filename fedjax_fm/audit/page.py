"""audit.md: the table of an audit, and what it cannot show."""

import html
from collections.abc import Sequence
from typing import Any

from fedjax_fm.audit.findings import Finding
from fedjax_fm.audit.subject import Subject

HEAD = ("attack or control", "figure", "", "95 % interval", "by chance", "verdict", "")
CANNOT = (
    "An attack that finds nothing proves nothing: a better one may. Only an accountant's "
    "epsilon is a promise.",
    "Intervals take examples as independent. Those of one client are alike, and the "
    "truth is less certain.",
    "What was audited is the server's last model, and one upload that was made anew. An "
    "attacker who sees every round sees more.",
)
PERSONAL = (
    "Clients keep models of their own in this run, which are nobody's to see: they were "
    "not audited."
)


def as_markdown(subject: Subject, findings: Sequence[Finding], picture: str) -> str:
    """The whole page.

    Args:
      subject: the run.
      findings: lines of the table.
      picture: name of its file.

    Returns:
      The text of audit.md.
    """
    settings, seed = subject.settings, subject.seed
    head = (
        f"Model of seed {seed} after {settings.rounds} rounds of {settings.method}, "
        f"{settings.peft}; {len(subject.data.train)} clients train."
    )
    lines = [
        f"# What {subject.folder.path.resolve().name} leaks",
        "",
        head,
        "",
        *table(findings),
        "",
        f"![curves of the attacks]({picture})",
        "",
        "Curves and intervals above chance leak; dashed curves are controls, which must "
        "follow chance.",
        "",
        "## What this cannot show",
        "",
    ]
    lines += [f"- {text}" for text in CANNOT + (PERSONAL,) * subject.is_personal]
    return "\n".join(lines) + "\n"


def table(findings: Sequence[Finding]) -> list[str]:
    """The lines of the table.

    Args:
      findings: lines of the audit.
    """
    rows = [HEAD, ("---",) * len(HEAD), *map(_row, findings)]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]


def _row(one: Finding) -> tuple[str, ...]:
    figure, interval = "", ""
    if one.figure is not None:
        figure = f"{one.figure.value:.3g}"
        is_exact = one.figure.low == one.figure.high
        interval = "" if is_exact else f"{one.figure.low:.3g} to {one.figure.high:.3g}"
    chance = "" if one.chance is None else f"{one.chance:.3g}"
    return one.name, one.measure, figure, interval, chance, one.verdict, one.note


def _cell(text: str) -> str:
    """A text that cannot end its cell, nor bring markup of its own."""
    in_one_line = " ".join(text.split())
    return html.escape(in_one_line, quote=False).replace("|", "\\|")


def told(findings: Sequence[Finding]) -> list[str]:
    """One line a finding, for the terminal.

    Args:
      findings: lines of the audit.
    """
    lines = []
    for one in findings:
        _, measure, figure, interval, _, verdict, note = _row(one)
        between = f" ({interval})" if interval else ""
        said = f"{measure} {figure}{between}" if figure else ""
        parts = [part for part in (said, verdict, note) if part]
        lines.append(f"{one.name}: {'; '.join(parts)}")
    return lines


def as_fields(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings, for audit.json; what has no end is None there.

    Args:
      findings: lines of the audit.
    """
    fields = []
    for one in findings:
        found = one._asdict()
        if one.figure is not None:
            pairs = one.figure._asdict().items()
            found["figure"] = {
                name: value if abs(value) < float("inf") else None
                for name, value in pairs
            }
        fields.append(found)
    return fields
