"""A report of one run, of anybody's folder with a metrics.jsonl."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedjax_fm.callbacks.history import metrics_of
from fedjax_fm.runs.errors import RunFolderError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study import page, plots


def write_report(folder: RunFolder) -> Path:
    """report.html with every column of metrics.jsonl as a curve.

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
    up, down = (
        rows[-1].get(f"{way}link_bytes_total", 0) / 1e6 for way in ("up", "down")
    )
    lead = f"{rounds[-1]} rounds, {up:.3g} MB up and {down:.3g} MB down, all clients together."
    last = {
        name: column[~np.isnan(column)][-1]
        for name, column in metrics.items()
        if not np.isnan(column).all()
    }
    table = [[name.replace("_", " "), f"{value:.5g}"] for name, value in last.items()]
    found = "".join(
        [
            page.tag("div", "one run", "study"),
            page.tag("h1", folder.path.resolve().name),
            page.tag("p", lead, "answer"),
            page.figure(
                _curves(metrics, rounds),
                "Every column of metrics.jsonl against rounds.",
            ),
            page.tag("h2", "In the end"),
            page.table(["", "last value"], table, [""] * len(table)),
        ]
    )
    return folder.write_text("report.html", page.document(folder.path.name, found))


def _curves(metrics: dict[str, np.ndarray], rounds: np.ndarray) -> Figure:
    names = [
        name
        for name, column in metrics.items()
        if not np.isnan(column).all() and np.ptp(column[~np.isnan(column)])
    ]
    names = names or ["loss"]
    n_rows = -(-len(names) // 3)
    with plots.style():
        figure = Figure(figsize=(10.4, 2.6 * n_rows), layout="constrained")
        places = np.atleast_1d(figure.subplots(n_rows, 3, squeeze=False)).reshape(-1)
        for axes, name in zip(places, names, strict=False):
            known = ~np.isnan(metrics[name])
            axes.plot(
                rounds[known], metrics[name][known], lw=1.8, color=plots.COLOURS[0]
            )
            axes.set_title(name.replace("_", " "), color=plots.INK, fontsize=11)
            plots.plain(axes, "", "")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axes in places[len(names) :]:
            axes.set_visible(False)
    return figure
