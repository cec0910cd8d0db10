"""What `fedjax-fm audit` does."""

from pathlib import Path
from typing import NamedTuple

from fedjax_fm.audit import (
    figure,
    inversion,
    members,
    page,
    secrets,
    subject,
    upload,
)
from fedjax_fm.audit.findings import Finding
from fedjax_fm.runs.errors import UsageError

PAGE, PICTURE, FIGURES = "audit.md", "audit.svg", "audit.json"


class Effort(NamedTuple):
    """How much is computed.

    Attributes:
      examples: at most, of members and of others.
      candidates: secrets that a canary is ranked among.
      search_steps: of the search for a text behind a gradient; 0 leaves it out.
    """

    examples: int = 500
    candidates: int = 999
    search_steps: int = 0

    def checked(self) -> "Effort":
        """Itself, after a check of its values.

        Raises:
          UsageError: names the value that makes no sense.
        """
        bounds = {"examples": 2, "candidates": 1, "search_steps": 0}
        for name, least in bounds.items():
            value = getattr(self, name)
            if value < least:
                raise UsageError(f"expected {name} >= {least}, got {name}={value}")
        return self


class Audit(NamedTuple):
    """What was found and where it was written.

    Attributes:
      page: path of audit.md.
      findings: lines of its table.
    """

    page: Path
    findings: list[Finding]


def audit(place: Path, seed: int | None = None, effort: Effort | None = None) -> Audit:
    """Attacks the model of a run, and writes audit.md, audit.svg and audit.json there.

    Args:
      place: of a folder of `fedjax-fm finetune`.
      seed: whose model is attacked; None: the first.
      effort: how much is computed; None: the default.

    Returns:
      The page and the findings.

    Raises:
      UsageError: the folder holds nothing that can be audited, which it names.
    """
    much = (Effort() if effort is None else effort).checked()
    run = subject.opened(place, seed)
    of_members = members.audited(run, much.examples)
    of_secrets = secrets.audited(run, much.candidates)
    findings = [
        *of_members.findings,
        *of_secrets.findings,
        *upload.audited(run),
        *inversion.audited(run, much.search_steps),
    ]
    drawn = figure.drawn(of_members, of_secrets)
    run.folder.write_text(PICTURE, figure.as_svg(drawn))
    fields = {"seed": run.seed, "findings": page.as_fields(findings)}
    run.folder.up_to_date().write_json(FIGURES, fields)
    text = page.as_markdown(run, findings, PICTURE)
    return Audit(run.folder.write_text(PAGE, text), findings)
