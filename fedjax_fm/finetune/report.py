"""RESULTS.md and report.html of a run, from the files of its folder alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study import cost, markdown, page, results
from fedjax_fm.study.results import Results

FACTS = "finetune.json"


def write(folder: RunFolder) -> Path:
    """Writes both pages.

    Args:
      folder: of a run that is done.

    Returns:
      The path of report.html.
    """
    found, facts = results.read(folder), folder.read_json(FACTS)
    costs = cost.of_study(found, folder)
    parts = [markdown.write(found), as_markdown(found, facts)]
    parts.append("\n".join(cost.as_markdown(costs)))
    folder.write_text("RESULTS.md", "\n".join(parts))
    more = [*sections(found, facts), *page.costs(costs)]
    return folder.write_text("report.html", page.write(found, more))


def lines(found: Results, facts: dict[str, Any]) -> dict[str, str]:
    """What was done, in a line each.

    Args:
      found: the results.
      facts: of finetune.json.

    Returns:
      {what: text}, for the pages and the model card.
    """
    plan = facts["plan"]
    said = {
        "data": f"{plan['source']}, SHA-256 {plan['data_sha256'][:16]}…",
        "model": f"{plan['model']}, SHA-256 {plan['model_sha256'][:16]}…",
        "columns": plan["columns"],
        "clients": plan["clients"],
        "trained": plan["parameters"],
        "bytes": _bytes(found),
        "seeds": ", ".join(str(one["seed"]) for one in found.runs("federated")),
    }
    if "classes" in plan:
        said["classes"] = plan["classes"]
    if facts["counts"]:
        said["counted and left out"] = "; ".join(
            f"{name}: {number:,}" for name, number in facts["counts"].items()
        )
    runs = found.runs("federated")
    for one in runs:
        if "over_clients" in one:
            said[f"held-out pairs, seed {one['seed']}"] = one["over_clients"]
    spent = [one["epsilon"] for one in runs if "epsilon" in one]
    if spent:
        said["privacy"] = f"epsilon {max(spent):.3g} for every client, {plan['dp']}"
    if len(spent) > 1:
        said["privacy"] += (
            f"; for the model of one seed: all {len(spent)} together spend more"
        )
    return said


def _bytes(found: Results) -> str:
    """Bytes of all rounds, mean over seeds."""
    up = found.megabytes("federated", ["uplink_bytes"]) or 0.0
    down = found.megabytes("federated", ["downlink_bytes"]) or 0.0
    return f"{up:.3g} MB up, {down:.3g} MB down, all clients together, mean over seeds"


def scores(found: Results) -> dict[str, str]:
    """The primary score of every arm, with its interval, for the model card.

    Args:
      found: the results.
    """
    head, rows = markdown.columns(found), markdown.rows(found)
    return {f"{head[1]}, {row[0]}": row[1] for row in rows}


def as_markdown(found: Results, facts: dict[str, Any]) -> str:
    """The sections of this command, for RESULTS.md.

    Args:
      found: the results.
      facts: of finetune.json.
    """
    text = ["## What was done", ""]
    text += [f"- {name}: {said}" for name, said in lines(found, facts).items()]
    return "\n".join(text) + "\n"


def sections(found: Results, facts: dict[str, Any]) -> list[str]:
    """The sections of this command, for report.html.

    Args:
      found: the results.
      facts: of finetune.json.

    Returns:
      HTML of each.
    """
    rows = [[name, said] for name, said in lines(found, facts).items()]
    html = [
        page.tag("h2", "What was done"),
        _left(page.table(["", ""], rows, [""] * len(rows))),
    ]
    answers = found.runs("federated")[0].get("answers", [])
    if answers:
        html.append(page.tag("h2", "Held-out prompts, before and after"))
        head = ["prompt", "wanted", "before", "after"]
        body = [[_short(one[name]) for name in head] for one in answers]
        html.append(_left(page.table(head, body, [""] * len(body))))
    return html


def _left(table: str) -> str:
    """A table of texts: on the left, over several lines."""
    style = "style='white-space:normal;text-align:left;vertical-align:top'"
    return table.replace("<td>", f"<td {style}>")


def _short(text: str, most: int = 400) -> str:
    return text if len(text) <= most else text[:most] + " …"


def told(facts: dict[str, Any]) -> Sequence[str]:
    """The plan, line by line, for the terminal.

    Args:
      facts: of finetune.json.
    """
    plan = facts["plan"]
    found = [
        f"data: {plan['source']}",
        f"columns: {plan['columns']}",
        f"clients: {plan['clients']}",
        f"model: {plan['model']}, {plan['parameters']}",
    ]
    found += [f"classes: {plan['classes']}"] if "classes" in plan else []
    found += [f"  {name}: {number:,}" for name, number in facts["counts"].items()]
    return found + [f"note: {note}" for note in plan["notes"]]
