"""Figures of a study's report. Matplotlib's object interface only: no window, no global state."""

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
# Told apart on white and on black, and by people who do not see red or green.
COLOURS = (
    *(
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
    ),
    *("#e377c2", "#4caf50"),
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
    """One for each arm, the same in every figure."""
    return dict(zip(results.arms, itertools.cycle(COLOURS), strict=False))


def forest(results: Results) -> Figure:
    """Each arm a line: its seeds as dots, their mean with its 95 % interval."""
    score, colour = results.primary, colours(results)
    arms = list(reversed(results.arms))
    with style():
        figure = Figure(figsize=(9.6, 0.42 * len(arms) + 0.9), layout="constrained")
        axes = figure.subplots()
        for place, arm in enumerate(arms):
            values = score.scale * results.values(arm)
            values = values[~np.isnan(values)]
            if not len(values):
                continue
            axes.plot(
                values,
                np.full(len(values), place - 0.24),
                "o",
                ms=4,
                mew=0,
                alpha=0.55,
                color=colour[arm],
            )
            if len(values) > 1:
                half = half_width(values)
                axes.plot(
                    [values.mean() - half, values.mean() + half],
                    [place, place],
                    lw=2.6,
                    color=colour[arm],
                )
            axes.plot(values.mean(), place, "D", ms=6.5, mew=0, color=colour[arm])
        axes.set_xlim(*_limits(results))
        axes.set_yticks(range(len(arms)), [results.label(arm) for arm in arms])
        axes.set_ylim(-0.6, len(arms) - 0.4)
        plain(axes, score.title + ("" if score.highest else ", lower is better"), "")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


def _limits(results: Results) -> tuple[float, float]:
    """Where all seeds are, with some room.

    The intervals of two seeds may be wider than anything that can be.
    """
    score = results.primary
    values = np.concatenate([score.scale * results.values(arm) for arm in results.arms])
    values = values[~np.isnan(values)]
    if not len(values):
        return 0.0, 1.0
    room = 0.35 * (values.max() - values.min()) or 0.1 * abs(values[0]) or 1.0
    low, high = values.min() - room, values.max() + room
    return (max(low, 0.0), min(high, 100.0)) if score.unit == "%" else (low, high)


def curves(results: Results) -> Figure | None:
    """The primary score, or the training loss where nobody looked, against rounds,
    bytes and simulated seconds.
    """
    score, colour = results.primary, colours(results)
    column = f"eval_{score.name}"
    if not any(
        column in row
        for arm in results.arms
        for run in results.runs(arm)
        for row in run.get("curve", [])
    ):
        column = "loss"
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
                x, middle, half = line
                scale = score.scale if column != "loss" else 1.0
                (handle,) = axes.plot(x, scale * middle, "-", lw=1.9, color=colour[arm])
                axes.fill_between(
                    x,
                    scale * (middle - half),
                    scale * (middle + half),
                    color=colour[arm],
                    alpha=faint,
                    lw=0,
                )
                drawn[results.label(arm)] = handle
            if logarithmic:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
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


def _range_of_lines(places: Sequence[Axes]) -> tuple[float, float]:
    """Of the means, with some room; bands may go beyond."""
    y = np.concatenate(
        [
            np.asarray(line.get_ydata(), np.float64)
            for axes in places
            for line in axes.lines
        ]
    )
    room = 0.25 * (y.max() - y.min()) or 0.1 * abs(y[0]) or 1.0
    return float(y.min() - room), float(y.max() + room)


def _band(
    results: Results, arm: str, what: str, column: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(x, mean, half-width) over the seeds, at the rounds that all of them looked at."""
    runs = [run["curve"] for run in results.runs(arm) if run.get("curve")]
    tables = [{row["round"]: row for row in curve if column in row} for curve in runs]
    rounds = (
        sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    )
    if not rounds:
        return None
    y = np.array([[table[r][column] for r in rounds] for table in tables])
    x = np.mean([[_x(table[r], what) for r in rounds] for table in tables], axis=0)
    if what == "bytes" and not x.any():
        return None
    half = np.array([half_width(values) if len(tables) > 1 else 0.0 for values in y.T])
    return x, y.mean(axis=0), half


def _x(row: dict, what: str) -> float:
    return (
        (row["uplink_bytes"] + row["downlink_bytes"]) / 1e6
        if what == "bytes"
        else row[what]
    )


def clients(results: Results) -> Figure | None:
    """Every client of every seed, sorted, for arms that were scored client by client."""
    score, colour = results.primary, colours(results)
    series = {
        arm: _sorted(
            [value for run in results.runs(arm) for value in run.get("clients", [])]
        )
        for arm in results.arms
    }
    series = {
        arm: score.scale * values for arm, values in series.items() if len(values)
    }
    if not series:
        return None
    with style():
        figure = Figure(figsize=(10.2, 3.8), layout="constrained")
        axes = figure.subplots()
        for arm, values in series.items():
            worst = values if score.highest else values[::-1]
            share = (
                np.linspace(0, 100, len(worst)) if len(worst) > 1 else np.array([50.0])
            )
            axes.step(
                share,
                worst,
                where="mid",
                lw=1.8,
                color=colour[arm],
                label=results.label(arm),
            )
            tenth = worst[: max(1, len(worst) // 10)]
            axes.plot(5, tenth.mean(), "D", ms=6, mew=0, color=colour[arm])
        plain(axes, "clients, from the worst to the best (%)", score.title)
        figure.legend(
            loc="outside lower center",
            ncols=min(len(series), 4),
            frameon=False,
            labelcolor=INK,
        )
    return figure


def _sorted(values: Sequence[float]) -> np.ndarray:
    return np.sort(np.asarray(values, np.float64))


def plain(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, a faint grid and two spines, in the page's own colour of text."""
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.grid(alpha=0.22)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
