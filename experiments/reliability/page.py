"""The tables of a round of faults, in Markdown."""

from collections.abc import Mapping, Sequence

from fedjax_fm.experiments.reliability.growth import Sample
from fedjax_fm.experiments.reliability.long import table
from fedjax_fm.experiments.reliability.outcome import (
    Fault,
    Outcome,
)

FAILED = "**FAILED**"
Found = Mapping[tuple[str, str], Outcome]  # by names of fault and method


def outcomes(faults: Sequence[Fault], methods: Sequence[str], found: Found) -> str:
    """One row a fault, one column a method.

    Args:
      faults: that were tried.
      methods: to which.
      found: what became of them; without those that were not tried.
    """
    head = ("fault", *methods)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for fault in faults:
        some = [found.get((fault.name, method)) for method in methods]
        cells = [one.cell if one else "" for one in some]
        lines.append("| " + " | ".join((fault.name, *cells)) + " |")
    return "\n".join(lines)


def words(faults: Sequence[Fault], methods: Sequence[str], found: Found) -> str:
    """What runs of the first method say of each fault, for reading.

    Args:
      faults: that were tried.
      methods: the first is shown.
      found: what became of them.
    """
    lines = []
    for fault in faults:
        outcome = found.get((fault.name, methods[0]))
        if outcome is None or not outcome.says:
            continue
        in_one_line = " ".join(outcome.says.split()).replace("`", "'")
        lines.append(f"- {fault.name}: `{in_one_line}`")
    return "\n".join(lines)


def growth(samples: Mapping[str, Sequence[Sample]]) -> str:
    """A table for each method.

    Args:
      samples: of each method's long run.
    """
    parts = [table(method, some) for method, some in samples.items()]
    return "\n\n".join("\n".join(lines) for lines in parts)
