"""The picture: accuracy against bytes, a colour a part, a mark a way, the front drawn."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedjax_fm.experiments.joint.front import ARM_NAMES, front, mean
from fedjax_fm.experiments.joint.parts import PARTS
from fedjax_fm.experiments.joint.ways import WAYS
from fedjax_fm.study.plots import COLOURS, INK, plain, style
from fedjax_fm.study.results import Results

MARKS = dict(zip(WAYS, "oPsv^D<>*X", strict=True))
INKS = dict(zip(PARTS, COLOURS, strict=False))
TITLES = {
    "tags": "parts of speech, MiniLM's last layer",
    "conversations": "next words of chats, SmolLM2's last layer",
}


def draw(runs: Mapping[str, Results]) -> Figure:
    """A panel a task.

    Args:
      runs: {task: results}.
    """
    with style():
        size = (6.2 * len(runs) + 2.4, 5.2)
        figure = Figure(figsize=size, layout="constrained")
        places = figure.subplots(1, len(runs), squeeze=False)[0]
        for axes, (task, results) in zip(places, runs.items(), strict=True):
            _panel(axes, results)
            axes.set_title(TITLES.get(task, task), color=INK, fontsize=11)
        figure.legend(
            handles=_keys(),
            loc="outside right center",
            frameon=False,
            labelcolor=INK,
        )
    return figure


def _panel(axes: Any, results: Results) -> None:
    """The arms of a task, and what no training and the head alone reach."""
    for arm, (part, way) in ARM_NAMES.items():
        if arm not in results.arms:
            continue
        x, y = mean(results, arm, "megabytes"), _percent(results, arm)
        axes.plot(x, y, MARKS[way], ms=8, mew=0, alpha=0.85, color=INKS[part])
    kept = sorted(
        (mean(results, arm, "megabytes"), _percent(results, arm))
        for arm in front(results, "megabytes")
    )
    axes.step(*zip(*kept, strict=True), where="post", lw=1.6, color="#7f8c9b", zorder=0)
    for name, words in (("untrained", "before training"), ("head_plain", "head alone")):
        if name in results.arms:
            height = _percent(results, name)
            axes.axhline(height, lw=0.9, ls=":", color="#7f8c9b")
            axes.annotate(
                words,
                (0.99, height),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color="#7f8c9b",
                fontsize=9,
            )
    axes.set_xscale("log")
    plain(axes, "MB sent, both ways, all clients (log)", "accuracy (%)")


def _percent(results: Results, arm: str) -> float:
    """The mean accuracy of an arm, in per cent."""
    return 100 * mean(results, arm, results.primary.name)


def _keys() -> list[Line2D]:
    """The legend: colours of parts, then marks of ways."""
    used = {part for part, _ in ARM_NAMES.values()}
    parts = [
        Line2D([], [], marker="o", ls="", ms=8, mew=0, color=INKS[part], label=words)
        for part, words in PARTS.items()
        if part in used
    ]
    ways = [
        Line2D(
            [], [], marker=MARKS[way], ls="", ms=8, mew=0, color=INK, label=one.label
        )
        for way, one in WAYS.items()
    ]
    line = Line2D([], [], lw=1.6, color="#7f8c9b", label="front, of means")
    return [*parts, *ways, line]
