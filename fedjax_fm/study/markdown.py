"""RESULTS.md, from results.json alone."""

import numpy as np

from fedjax_fm.evaluation.intervals import plus_minus
from fedjax_fm.study.results import Results, has_failed
from fedjax_fm.study.shape import Score


def shown(results: Results, arm: str, score: Score) -> str:
    """One cell of the table of arms.

    Args:
      results: of a study.
      arm: its name.
      score: of the column.

    Returns:
      Mean and 95 % half-width over the seeds, in the score's unit; "failed" where no
      run succeeded, "" where the arm has no such score.
    """
    values = results.values(arm, score)
    known = values[~np.isnan(values)]
    if not len(known):
        return "failed" if results.failures(arm) else ""
    text = plus_minus(known, scale=score.scale, digits=score.digits)
    if len(known) < len(values):
        return f"{text} ({len(known)} of {len(values)} seeds)"
    return text


def columns(results: Results) -> list[str]:
    """The head of the table of arms.

    Args:
      results: of a study.
    """
    scores = [score.title for score in results.scores]
    return ["", *scores, "MB up", "MB down", "rounds", "settings"]


def rows(results: Results) -> list[list[str]]:
    """The body of the table of arms.

    Args:
      results: of a study.

    Returns:
      A row for each arm, with the cells of `columns`.
    """
    found = []
    for arm in results.arms:
        up = results.megabytes(arm, ("uplink_bytes",))
        down = results.megabytes(arm, ("downlink_bytes",))
        scores = [shown(results, arm, score) for score in results.scores]
        sizes = ["" if size is None else f"{size:.3g}" for size in (up, down)]
        rounds = " to ".join(str(number) for number in results.rounds(arm))
        row = [results.label(arm), *scores, *sizes, rounds, results.settings(arm)]
        found.append(row)
    return found


def comparison_rows(results: Results) -> list[list[str]]:
    """The body of the table of comparisons.

    Args:
      results: of a study.

    Returns:
      [who, difference, p, verdict] of each comparison.
    """
    found = []
    for verdict in results.verdicts():
        who = f"{results.label(verdict.arm)} against {results.label(verdict.than)}"
        p = "" if verdict.found is None else f"{verdict.found.p:.2g}"
        found.append([who, results.difference(verdict), p, verdict.words])
    return found


def control_lines(results: Results) -> list[str]:
    """A sentence for each control, in capitals where it did not fail.

    Args:
      results: of a study.
    """
    lines = []
    for control, verdict in results.controls():
        worse, better = results.label(verdict.arm), results.label(verdict.than)
        who = f"{worse} must be worse than {better}"
        difference = results.difference(verdict)
        if has_failed(verdict):
            lines.append(f"{who}, and is: {difference or verdict.words}")
        else:
            why = f" {control['why']}" if control["why"] else ""
            lines.append(
                f"**CONTROL DID NOT FAIL**: {who}, and is not: {difference}.{why}"
            )
    return lines


def seeds_line(results: Results) -> str:
    """Which seeds there are, and which of them were added later.

    Args:
      results: of a study.
    """
    planned = ", ".join(str(seed) for seed in results.raw["seeds"])
    added = ", ".join(str(seed) for seed in results.raw["added_seeds"])
    text = f"Seeds {planned}, fixed before the run"
    if added:
        text += (
            f"; {added} added after their results had been seen, "
            "which makes verdicts too bold"
        )
    return text


def commits(results: Results) -> list[str]:
    """The commits whose code computed the runs.

    Args:
      results: of a study.
    """
    return sorted({one["commit"] for arm in results.arms for one in results.runs(arm)})


def answer(results: Results) -> str:
    """The first sentence of a page: what the comparisons show.

    Args:
      results: of a study.
    """
    if len(results.runs(results.arms[0])) == 1:
        return (
            f"{_seen(results)} One seed shows numbers and allows no verdict; that "
            "takes three or more."
        )
    clear = [
        verdict
        for verdict in results.verdicts()
        if verdict.words in ("better", "worse")
    ]
    if not clear:
        return "No difference is seen in any comparison."
    sentences = []
    for one in clear:
        arm, than = results.label(one.arm), results.label(one.than)
        sentences.append(f"{arm} is {one.words} than {than}: {results.difference(one)}")
    return "; ".join(sentences)


def _seen(results: Results) -> str:
    """What one seed has shown of the first arm that is compared, in numbers alone."""
    verdicts = [one for one in results.verdicts() if one.found is not None]
    if not verdicts:
        return ""
    first = verdicts[0].arm
    others = []
    for one in verdicts:
        if one.arm == first:
            difference = results.difference(one).removesuffix(", one seed")
            others.append(f"{difference} against {results.label(one.than)}")
    value = results.primary.shown(results.values(first)[0])
    return f"{results.label(first)}: {value}; {', '.join(others)}."


def write(results: Results) -> str:
    """The page.

    Args:
      results: of a study that is done.

    Returns:
      Markdown.
    """
    raw, environment = results.raw, results.raw["provenance"]
    libraries = environment.get("versions", {})
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    settings = ", ".join(f"{name}={value}" for name, value in raw["config"].items())
    lines = [
        f"# {raw['study']}: results",
        "",
        f"Written by `{raw['command']}`; do not edit. {seeds_line(results)}. A ± "
        "is a 95 % half-width over seeds.",
        "",
        f"**{raw['question']}** {answer(results)}",
        "",
        f"Expected, written down before the run: {raw['expected']}",
        "",
        *table(columns(results), rows(results)),
        "",
        "## Comparisons",
        "",
        f"Paired over seeds, of {results.primary.title}; each interval is that of "
        "its comparison alone, p and verdict are corrected by Holm for "
        f"{len(raw['comparisons'])} comparisons.",
        "",
        *table(["", "difference", "p", "verdict"], comparison_rows(results)),
        "",
        "## Controls",
        "",
        *(f"- {line}" for line in control_lines(results)),
        "",
    ]
    failures = [
        f"- {results.label(arm)}, {text}"
        for arm in results.arms
        for text in results.failures(arm)
    ]
    if failures:
        lines += ["## What failed", "", *failures, ""]
    lines += [
        "## Where this comes from",
        "",
        f"- commit {', '.join(commits(results))}",
        f"- {environment.get('machine', '')}, {environment.get('processor', '')}, "
        f"{environment.get('devices', '')}",
        f"- {versions}",
        f"- settings: {settings}",
        "- MB are those of all clients together, real packed buffers, 1 MB = "
        f"10^6 bytes; {results.how_chosen()}; (edge): at the edge of its grid",
        "",
    ]
    return "\n".join(lines)


def table(head: list[str], body: list[list[str]]) -> list[str]:
    """Lines of a table.

    Args:
      head: of the columns.
      body: cells of each row.
    """
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(row)} |" for row in body),
    ]
