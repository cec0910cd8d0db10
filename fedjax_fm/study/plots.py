"""Figures of a study's report, drawn without a window and without global state."""

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from fedjax_fm.evaluation.intervals import half_width
from fedjax_fm.study.results import Results

INK = "#010203"  # of text and axes; the page puts its own colour there
# Different on white and on black, and for readers who do not see red or green.
COLOURS = (
    "#3b7dd8",
    "#e08a1e",
    "#2fa37c",
    "#b565c7",
    "#d6455d",
    "#7f8c9b",
    "#17a2b8",
    "#c0a000",
    "#8a6d3b",
    "#5c6bc0",
    "#e377c2",
    "#4caf50",
)
_RC: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedjax_fm",
}


def style() -> Any:
    """A context in which all figures are drawn."""
    return mpl.rc_context(_RC)


def colours(results: Results) -> dict[str, str]:
    """A colour for each arm, the same in every figure.

    Args:
      results: of a study.
    """
    pairs = zip(results.arms, itertools.cycle(COLOURS), strict=False)
    return dict(pairs)


def forest(results: Results) -> Figure:
    """A line for each arm: its seeds as dots, their mean with its 95 % interval.

    Args:
      results: of a study.
    """
    score, colour = results.primary, colours(results)
    arms = list(reversed(results.arms))
    with style():
        figure = Figure(figsize=(9.6, 0.42 * len(arms) + 0.9), layout="constrained")
        axes = figure.subplots()
        for place, arm in enumerate(arms):
            values = _known(score.scale * results.values(arm))
            if not len(values):
                continue
            below, ink = np.full(len(values), place - 0.24), colour[arm]
            axes.plot(values, below, "o", ms=4, mew=0, alpha=0.55, color=ink)
            mean = values.mean()
            if len(values) > 1:
                half = half_width(values)
                axes.plot([mean - half, mean + half], [place, place], lw=2.6, color=ink)
            axes.plot(mean, place, "D", ms=6.5, mew=0, color=ink)
        axes.set_xlim(*_limits(results))
        labels = [results.label(arm) for arm in arms]
        axes.set_yticks(range(len(arms)), labels)
        axes.set_ylim(-0.6, len(arms) - 0.4)
        plain(axes, score.title + ("" if score.highest else ", lower is better"), "")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _limits(results: Results) -> tuple[float, float]:
    """Where all seeds are, with some room.

    Intervals may go beyond: those of two seeds are very wide.
    """
    score = results.primary
    each = [score.scale * results.values(arm) for arm in results.arms]
    values = _known(np.concatenate(each))
    if not len(values):
        return 0.0, 1.0
    least, most = values.min(), values.max()
    room = 0.35 * (most - least) or 0.1 * abs(values[0]) or 1.0
    low, high = least - room, most + room
    return (max(low, 0.0), min(high, 100.0)) if score.unit == "%" else (low, high)


def curves(results: Results) -> Figure | None:
    """The primary score against rounds, bytes and simulated seconds.

    Where no arm was evaluated during its runs, it is the training loss.

    Args:
      results: of a study.

    Returns:
      The figure; None if no arm has a curve.
    """
    score, colour = results.primary, colours(results)
    column = f"eval_{score.name}"
    if not _has_column(results, column):
        column = "loss"
    scale = score.scale if column != "loss" else 1.0
    panels = (
        ("round", "rounds", False),
        ("bytes", "MB, both ways (log)", True),
        ("seconds", "seconds, simulated", False),
    )
    drawn: dict[str, object] = {}
    faint = 0.14 if len(results.arms) <= 5 else 0.07
    with style():
        figure = Figure(figsize=(10.6, 4.0), layout="constrained")
        places = figure.subplots(1, 3, sharey=True)
        for axes, (what, xlabel, logarithmic) in zip(places, panels, strict=True):
            for arm in results.arms:
                line = _band(results, arm, what, column)
                if line is None:
                    continue
                x, ink = line[0], colour[arm]
                middle, half = scale * line[1], scale * line[2]
                form = "-" if len(x) > 1 else "o"  # of one point a line shows nothing
                (handle,) = axes.plot(x, middle, form, lw=1.9, color=ink)
                band = (middle - half, middle + half)
                axes.fill_between(x, *band, color=ink, alpha=faint, lw=0)
                drawn[results.label(arm)] = handle
            _ticks(axes, logarithmic)
            ylabel = score.title if column != "loss" else "training loss"
            plain(axes, xlabel, ylabel if axes is places[0] else "")
        if not drawn:
            return None
        places[0].set_ylim(*_range_of_lines(places))
        figure.legend(
            list(drawn.values()),  # type: ignore[arg-type]
            list(drawn),
            loc="outside lower center",
            ncols=min(len(drawn), 4),
            frameon=False,
            labelcolor=INK,
        )
    return figure


def _has_column(results: Results, column: str) -> bool:
    """Whether any run has values of that column in its curve."""
    runs = [run for arm in results.arms for run in results.runs(arm)]
    return any(column in row for run in runs for row in run.get("curve", []))


def _ticks(axes: Axes, logarithmic: bool) -> None:
    """Few round numbers along the x axis."""
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _range_of_lines(places: Sequence[Axes]) -> tuple[float, float]:
    """The range of the means, with some room; bands may go beyond."""
    lines = [line for axes in places for line in axes.lines]
    each = [line.get_ydata() for line in lines]
    y = np.concatenate([np.asarray(values, np.float64) for values in each])
    least, most = y.min(), y.max()
    room = 0.25 * (most - least) or 0.1 * abs(y[0]) or 1.0
    return float(least - room), float(most + room)


def _band(
    results: Results, arm: str, what: str, column: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(x, mean, half-width) over the seeds, at rounds that all of them have."""
    runs = [run["curve"] for run in results.runs(arm) if run.get("curve")]
    tables = [{row["round"]: row for row in curve if column in row} for curve in runs]
    if not tables:
        return None
    common = set.intersection(*(set(table) for table in tables))
    rounds = sorted(common)
    if not rounds:
        return None
    y = np.array([[table[r][column] for r in rounds] for table in tables])
    x = np.mean([[_x(table[r], what) for r in rounds] for table in tables], axis=0)
    if what == "bytes" and not x.any():
        return None
    halves = [half_width(values) if len(tables) > 1 else 0.0 for values in y.T]
    return x, y.mean(axis=0), np.array(halves)


def _x(row: dict, what: str) -> float:
    if what == "bytes":
        return (row["uplink_bytes"] + row["downlink_bytes"]) / 1e6
    return row[what]


def clients(results: Results) -> Figure | None:
    """Every client of every seed, sorted, for arms that were scored client by client.

    Args:
      results: of a study.

    Returns:
      The figure; None if no arm was scored client by client.
    """
    score, colour = results.primary, colours(results)
    series = {}
    for arm in results.arms:
        values = [v for run in results.runs(arm) for v in run.get("clients", [])]
        if values:
            series[arm] = score.scale * np.sort(np.asarray(values, np.float64))
    if not series:
        return None
    with style():
        figure = Figure(figsize=(10.2, 3.8), layout="constrained")
        axes = figure.subplots()
        for arm, values in series.items():
            worst, ink = values if score.highest else values[::-1], colour[arm]
            n, label = len(worst), results.label(arm)
            share = np.linspace(0, 100, n) if n > 1 else np.array([50.0])
            axes.step(share, worst, where="mid", lw=1.8, color=ink, label=label)
            tenth = worst[: max(1, n // 10)]
            axes.plot(5, tenth.mean(), "D", ms=6, mew=0, color=ink)
        plain(axes, "clients, from the worst to the best (%)", score.title)
        figure.legend(
            loc="outside lower center",
            ncols=min(len(series), 4),
            frameon=False,
            labelcolor=INK,
        )
    return figure


def plain(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Draws labels, a faint grid and two spines, in the page's colour of text.

    Args:
      axes: of a figure.
      xlabel: below.
      ylabel: on the left.
    """
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.grid(alpha=0.22)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
