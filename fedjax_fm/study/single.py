"""A report of one run, from any folder with a metrics.jsonl."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedjax_fm.callbacks.history import metrics_of
from fedjax_fm.runs.errors import RunFolderError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study import cost, page, plots


def write_report(folder: RunFolder) -> Path:
    """Writes report.html, with every column of metrics.jsonl as a curve.

    Args:
      folder: of a run with `callbacks.checkpoint` or `callbacks.track`.

    Returns:
      The page's path.

    Raises:
      RunFolderError: there is nothing to report.
    """
    rows = folder.metrics()
    if not rows:
        raise RunFolderError(
            f"{folder.path} has neither results.json, of a study, nor a "
            "metrics.jsonl with rows, of a run: there is nothing to report"
        )
    metrics, rounds = metrics_of(rows), np.array([row["round"] for row in rows])
    up, down = (rows[-1].get(f"{way}link_bytes_total", 0) for way in ("up", "down"))
    sent = f"{up / 1e6:.3g} MB up and {down / 1e6:.3g} MB down"
    lead = f"{rounds[-1]} rounds, {sent}, all clients together."
    table = []
    for name, column in metrics.items():
        known = column[~np.isnan(column)]
        if len(known):
            table.append([name.replace("_", " "), f"{known[-1]:.5g}"])
    caption = "Every column of metrics.jsonl against rounds."
    parts = [
        page.tag("div", "one run", "study"),
        page.tag("h1", folder.path.resolve().name),
        page.tag("p", lead, "answer"),
        page.figure(_curves(metrics, rounds), caption),
        page.tag("h2", "In the end"),
        page.table(["", "last value"], table, [""] * len(table)),
        *page.costs(cost.of_run(folder)),
    ]
    document = page.document(folder.path.name, "".join(parts))
    return folder.write_text("report.html", document)


def _curves(metrics: dict[str, np.ndarray], rounds: np.ndarray) -> Figure:
    """A panel for each column that changes."""
    known = {name: column[~np.isnan(column)] for name, column in metrics.items()}
    names = [name for name, column in known.items() if len(column) and np.ptp(column)]
    names = names or ["loss"]
    n_rows = -(-len(names) // 3)
    with plots.style():
        figure = Figure(figsize=(10.4, 2.6 * n_rows), layout="constrained")
        places = figure.subplots(n_rows, 3, squeeze=False).reshape(-1)
        for axes, name in zip(places, names, strict=False):
            x = rounds[~np.isnan(metrics[name])]
            axes.plot(x, known[name], lw=1.8, color=plots.COLOURS[0])
            axes.set_title(name.replace("_", " "), color=plots.INK, fontsize=11)
            plots.plain(axes, "", "")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axes in places[len(names) :]:
            axes.set_visible(False)
    return figure
