"""RESULTS.md, from results.json alone."""

import numpy as np

from fedjax_fm.evaluation.intervals import plus_minus
from fedjax_fm.study.results import Results, has_failed
from fedjax_fm.study.shape import Score


def shown(results: Results, arm: str, score: Score) -> str:
    """Mean and 95 % half-width over the seeds, in the score's unit."""
    values = results.values(arm, score)
    known = values[~np.isnan(values)]
    if not len(known):
        return "failed" if results.failures(arm) else ""
    text = plus_minus(known, scale=score.scale, digits=score.digits)
    return (
        text
        if len(known) == len(values)
        else f"{text} ({len(known)} of {len(values)} seeds)"
    )


def columns(results: Results) -> list[str]:
    """The head of the table."""
    scores = [score.title for score in results.scores]
    return ["", *scores, "MB up", "MB down", "rounds", "settings"]


def rows(results: Results) -> list[list[str]]:
    """One for each arm."""
    found = []
    for arm in results.arms:
        sent = [
            results.megabytes(arm, (way,)) for way in ("uplink_bytes", "downlink_bytes")
        ]
        found.append(
            [
                results.label(arm),
                *(shown(results, arm, score) for score in results.scores),
                *("" if size is None else f"{size:.3g}" for size in sent),
                " to ".join(map(str, results.rounds(arm))),
                results.settings(arm),
            ]
        )
    return found


def comparison_rows(results: Results) -> list[list[str]]:
    """(who, difference, p, verdict) of each comparison."""
    found = []
    for verdict in results.verdicts():
        who = f"{results.label(verdict.arm)} against {results.label(verdict.than)}"
        p = "" if verdict.found is None else f"{verdict.found.p:.2g}"
        found.append([who, results.difference(verdict), p, verdict.words])
    return found


def control_lines(results: Results) -> list[str]:
    """One sentence for each control; loud where it did not fail."""
    lines = []
    for control, verdict in results.controls():
        who = f"{results.label(verdict.arm)} must be worse than {results.label(verdict.than)}"
        if has_failed(verdict):
            lines.append(
                f"{who}, and is: {results.difference(verdict) or verdict.words}"
            )
        else:
            why = f" {control['why']}" if control["why"] else ""
            lines.append(
                f"**CONTROL DID NOT FAIL**: {who}, and is not: {results.difference(verdict)}.{why}"
            )
    return lines


def seeds_line(results: Results) -> str:
    """Which seeds, and which of them were added later."""
    planned, added = results.raw["seeds"], results.raw["added_seeds"]
    text = f"Seeds {', '.join(map(str, planned))}, fixed before the run"
    if added:
        text += (
            f"; {', '.join(map(str, added))} added after their results had been seen, "
            "which makes verdicts too bold"
        )
    return text


def commits(results: Results) -> list[str]:
    """Those that the runs were computed by."""
    return sorted({one["commit"] for arm in results.arms for one in results.runs(arm)})


def answer(results: Results) -> str:
    """The first sentence: what the comparisons allow to say."""
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
    return "; ".join(
        f"{results.label(one.arm)} is {one.words} than {results.label(one.than)}: "
        f"{results.difference(one)}"
        for one in clear
    )


def _seen(results: Results) -> str:
    """What one seed has shown.

    The first arm that is compared, and how far it is from each of the others.
    """
    score, verdicts = (
        results.primary,
        [one for one in results.verdicts() if one.found is not None],
    )
    if not verdicts:
        return ""
    first = verdicts[0].arm
    others = [
        f"{results.difference(one).removesuffix(', one seed')} against {results.label(one.than)}"
        for one in verdicts
        if one.arm == first
    ]
    value = f"{score.scale * results.values(first)[0]:.{score.digits}f} {score.unit}".strip()
    return f"{results.label(first)}: {value}; {', '.join(others)}."


def write(results: Results) -> str:
    """The page."""
    raw, environment = results.raw, results.raw["provenance"]
    versions = ", ".join(
        f"{name} {version}" for name, version in environment.get("versions", {}).items()
    )
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
        *_table(columns(results), rows(results)),
        "",
        "## Comparisons",
        "",
        f"Paired over seeds, of {results.primary.title}; each interval is that of "
        "its comparison alone, p and verdict are corrected by Holm for "
        f"{len(raw['comparisons'])} comparisons.",
        "",
        *_table(["", "difference", "p", "verdict"], comparison_rows(results)),
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
        f"- settings: {', '.join(f'{name}={value}' for name, value in raw['config'].items())}",
        "- MB are those of all clients together, real packed buffers, 1 MB = "
        "10^6 bytes; settings were chosen on validation clients of seed "
        f"{raw['tuning_seed']}, each arm with the same number of tries; (edge): "
        "at the edge of its grid",
        "",
    ]
    return "\n".join(lines)


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(row)} |" for row in body),
    ]
