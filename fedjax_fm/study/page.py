"""report.html, from results.json alone: one file that needs no network."""

import html
import io
import json
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from fedjax_fm.study import markdown, plots
from fedjax_fm.study.cost import TITLE, Section
from fedjax_fm.study.results import Results, has_failed

INK = plots.INK  # replaced by the page's own colour of text
_STYLE = """
:root{--ink:#1b2430;--soft:#5b6878;--line:#dfe5ec;--back:#fff;--card:#f5f8fb;--good:#1d7f4e;--bad:#c22f3c}
@media (prefers-color-scheme:dark){:root{--ink:#e8edf3;--soft:#9fadbd;--line:#2c3744;--back:#11161c;--card:#1a222b;
--good:#54c98b;--bad:#ff7b86}}
*{box-sizing:border-box} html{-webkit-text-size-adjust:100%}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:1080px;margin:0 auto;
padding:1.6rem 1.1rem 4rem}
h1{font-size:clamp(1.35rem,3.2vw,1.9rem);line-height:1.25;margin:.2rem 0 .7rem}
h2{font-size:1.15rem;margin:2.6rem 0 .6rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
.study{color:var(--soft);font-size:.9rem;letter-spacing:.02em}
.answer{font-size:1.12rem;margin:.2rem 0 1rem} .note{color:var(--soft);font-size:.9rem}
.verdict{display:inline-block;border-radius:.5rem;padding:.45rem .8rem;font-weight:600;border:1.5px solid}
.sound{color:var(--good);border-color:var(--good)} .unsound{color:#fff;background:#c22f3c;border-color:#c22f3c}
figure{margin:1rem 0;overflow-x:auto}
svg{width:100%;min-width:600px;height:auto;color:var(--ink)} figcaption{color:var(--soft);font-size:.88rem}
.scroll{overflow-x:auto} table{border-collapse:collapse;width:100%;
font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600;cursor:pointer;white-space:normal;vertical-align:bottom} th:hover{color:var(--ink)}
th:first-child,td:first-child,.left th,.left td{text-align:left}
td:last-child{white-space:normal;min-width:6.5rem}
tr.control td{color:var(--soft)} td.better{color:var(--good);font-weight:650} td.worse{color:var(--bad);font-weight:650}
details{margin-top:1rem} summary{cursor:pointer} pre{background:var(--card);padding:.8rem;overflow:auto;font-size:.82rem}
ul{padding-left:1.2rem} li{margin:.25rem 0}
"""
# A click on the head of a column sorts by it.
_SCRIPT = """
document.querySelectorAll('th').forEach(th=>th.onclick=()=>{const t=th.closest('table'),i=th.cellIndex,b=t.tBodies[0];
const v=r=>{const s=r.cells[i].textContent,n=parseFloat(s.replace('+',''));return isNaN(n)?s:n};
const d=th.dataset.d=th.dataset.d==='1'?'-1':'1';
[...b.rows].sort((x,y)=>{const a=v(x),c=v(y);return (a>c?1:a<c?-1:0)*d}).forEach(r=>b.append(r))});
"""


def write(results: Results, more: Sequence[str] = ()) -> str:
    """The page.

    Args:
      results: of a study that is done.
      more: HTML that stands before the sources.

    Returns:
      HTML with figures, styles and scripts inside.
    """
    raw = results.raw
    parts = [
        tag("div", f"{raw['study']} · {markdown.seeds_line(results)}", "study"),
        tag("h1", raw["question"]),
        tag("p", markdown.answer(results), "answer"),
        _soundness(results),
        figure(
            plots.forest(results),
            f"{results.primary.title}: every seed a dot, means with 95 % intervals.",
        ),
        *_curves(results),
        tag("h2", "Arms"),
        _arms(results),
        tag(
            "p",
            "Click on a column to sort by it. A ± is a 95 % half-width over "
            "seeds; MB are of all clients.",
            "note",
        ),
        tag("h2", "Comparisons"),
        _comparisons(results),
        tag(
            "p",
            "Paired over seeds; p and verdicts are corrected by Holm for "
            f"{len(raw['comparisons'])} comparisons, each interval is that of its "
            "comparison alone.",
            "note",
        ),
        *_clients(results),
        *_failures(results),
        *more,
        *_sources(results),
    ]
    return document(f"{raw['study']}: {raw['question']}", "".join(parts))


def costs(found: Section) -> list[str]:
    """The section on what a run would cost.

    Args:
      found: the section.

    Returns:
      HTML of its parts.
    """
    sources = _list(found.sources)
    folded = f"<details><summary>Profiles and sources</summary>{sources}</details>"
    rows = table(found.head, found.rows, [""] * len(found.rows)) if found.rows else ""
    lead = tag("p", found.lead, "note")
    return [tag("h2", TITLE), lead, rows, _list(found.notes), folded]


def document(title: str, body: str) -> str:
    """A whole page around a body.

    Args:
      title: plain text.
      body: HTML.

    Returns:
      HTML.
    """
    return (
        "<!doctype html><html lang=en><meta "
        f"charset=utf-8><title>{html.escape(title)}</title><meta name=viewport "
        "content='width=device-width,initial-scale=1'><meta name=color-scheme "
        "content='light dark'>"
        f"<style>{_STYLE}</style><body>{body}<script>{_SCRIPT}</script></body></html>"
    )


def tag(name: str, text: str, kind: str = "") -> str:
    """An element that holds text.

    Args:
      name: of the element, "p" for example.
      text: plain; it is escaped.
      kind: class of the element.

    Returns:
      HTML.

    Example:
      >>> tag("td", "a < b", "better")
      '<td class=better>a &lt; b</td>'
    """
    of_kind = f" class={kind}" if kind else ""
    return f"<{name}{of_kind}>{html.escape(text)}</{name}>"


def _soundness(results: Results) -> str:
    """Whether all controls failed: a green sentence, or a red one."""
    lines = markdown.control_lines(results)
    if results.is_sound:
        many = f"All {len(lines)} controls fail as they must"
        one = "Its control fails as it must"
        head = tag("span", f"✓ {one if len(lines) == 1 else many}", "'verdict sound'")
    else:
        verdicts = [verdict for _, verdict in results.controls()]
        n = sum(not has_failed(verdict) for verdict in verdicts)
        what = "A control did not fail" if n == 1 else f"{n} controls did not fail"
        text = f"✗ {what}: this study cannot tell what it asks"
        head = tag("span", text, "'verdict unsound'")
    return f"<div>{head}{_list(line.replace('**', '') for line in lines)}</div>"


def _list(items: Iterable[str]) -> str:
    entries = [tag("li", item) for item in items]
    return "<ul class=note>" + "".join(entries) + "</ul>"


def figure(drawn: Figure, caption: str) -> str:
    """A figure inside of a page, whose colour of text it takes.

    Args:
      drawn: from `plots`.
      caption: plain text.

    Returns:
      HTML with the figure as SVG.
    """
    buffer = io.StringIO()
    with plots.style():  # its ids are the same in every process
        drawn.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            transparent=True,
            metadata={"Date": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _curves(results: Results) -> list[str]:
    drawn = plots.curves(results)
    if drawn is None:
        return []
    caption = (
        "During the runs: means over seeds, bands are 95 % intervals. Bytes are "
        "up and down of all clients together; seconds are simulated "
        f"({results.raw['clock']})."
    )
    return [tag("h2", "On the way"), figure(drawn, caption)]


def _arms(results: Results) -> str:
    controls = {control["arm"] for control in results.raw["controls"]}
    kinds = ["control" if arm in controls else "" for arm in results.arms]
    return table(markdown.columns(results), markdown.rows(results), kinds)


def _comparisons(results: Results) -> str:
    head, body = ["", "difference", "p", "verdict"], markdown.comparison_rows(results)
    return table(head, body, [""] * len(body))


def table(
    head: Sequence[str], body: Sequence[Sequence[str]], kinds: Sequence[str]
) -> str:
    """A table that is sorted by a click on the head of a column.

    Args:
      head: plain text of each column.
      body: plain text of each cell, row by row.
      kinds: class of each row, "" for none.

    Returns:
      HTML.
    """
    top = "".join(tag("th", cell) for cell in head)
    rows = [_row(row, kind) for row, kind in zip(body, kinds, strict=True)]
    return (
        f"<div class=scroll><table><thead><tr>{top}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(cells: Sequence[str], kind: str) -> str:
    of_kind = f" class={kind}" if kind else ""
    inside = "".join(_cell(cell) for cell in cells)
    return f"<tr{of_kind}>{inside}</tr>"


def _cell(text: str) -> str:
    return tag("td", text, text if text in ("better", "worse") else "")


def _clients(results: Results) -> list[str]:
    drawn = plots.clients(results)
    if drawn is None:
        return []
    caption = (
        f"{results.primary.title} of every client on its own examples, all seeds, "
        "from the worst to the best; the mark is the mean of the worst tenth."
    )
    return [tag("h2", "Client by client"), figure(drawn, caption)]


def _failures(results: Results) -> list[str]:
    found = [
        f"{results.label(arm)}, {text}"
        for arm in results.arms
        for text in results.failures(arm)
    ]
    tuned = [
        f"{results.label(arm)}, while tuning, {point['settings']}"
        for arm in results.arms
        for point in results.raw["arms"][arm]["tuning"]
        if point["score"] is None
    ]
    return [tag("h2", "What failed"), _list([*found, *tuned])] if found or tuned else []


def _sources(results: Results) -> list[str]:
    raw = results.raw
    environment = raw["provenance"]
    commits = ", ".join(markdown.commits(results))
    machine = [
        environment.get(name, "") for name in ("machine", "processor", "devices")
    ]
    lines = (
        f"Expected, written down before the run: {raw['expected']}",
        f"Command: {raw['command']}",
        f"Commit: {commits}",
        f"Machine: {', '.join(machine)}",
        f"{results.how_chosen().capitalize()}.",
    )
    text = json.dumps({name: raw[name] for name in ("config", "provenance")}, indent=1)
    folded = (
        "<details><summary>Settings and versions in "
        f"full</summary><pre>{html.escape(text)}</pre></details>"
    )
    return [tag("h2", "Where this comes from"), _list(lines), folded]
