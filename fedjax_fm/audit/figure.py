"""The picture of an audit: curves of the attacks on members, exposures of the canaries."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedjax_fm.audit.members import BEFORE, BLIND, Members
from fedjax_fm.audit.secrets import Secrets
from fedjax_fm.evaluation.leaks import CHANCE
from fedjax_fm.study.plots import COLOURS, plain, style

LINEAR = 0.01  # share of false alarms up to which the axis is linear


def drawn(members: Members, secrets: Secrets) -> Figure:
    """Draws the curves, and the exposures where there are some.

    Args:
      members: what was found about members.
      secrets: what was found about canaries.
    """
    n_panels = 1 + bool(len(secrets.exposures))
    with style():
        size = (4.8 * n_panels, 4.0)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        places = figure.subplots(1, n_panels, squeeze=False)[0]
        _curves(places[0], members)
        if n_panels == 2:
            _exposures(places[1], secrets)
    return figure


def _curves(axes: Axes, members: Members) -> None:
    """The share of members that is found, against that of false alarms."""
    for (name, (inside, outside)), colour in zip(
        members.scores.items(), COLOURS, strict=False
    ):
        edges = np.sort(np.concatenate([inside, outside]))[::-1]
        false = [(outside >= edge).mean() for edge in edges]
        true = [(inside >= edge).mean() for edge in edges]
        dashes = "--" if name in (BEFORE, BLIND) else "-"
        axes.plot([0, *false], [0, *true], dashes, color=colour, lw=1.6, label=name)
    even = np.linspace(0, 1, 1001)
    axes.plot(even, even, ":", color="#7f8c9b", lw=1.2, label="chance")
    plain(axes, "others taken for members", "members found")
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(
        frameon=False, fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(0, 1)
    )


def _exposures(axes: Axes, secrets: Secrets) -> None:
    """Each canary's exposure, and what chance gives."""
    sides = (("planted", secrets.is_planted), ("left out", ~secrets.is_planted))
    for place, (_, rows) in enumerate(sides):
        values = np.sort(secrets.exposures[rows])
        spread = np.linspace(-0.18, 0.18, len(values))
        axes.plot(place + spread, values, "o", ms=5, alpha=0.7, color=COLOURS[place])
    axes.axhline(CHANCE, ls=":", color="#7f8c9b", lw=1.2)
    axes.axhline(secrets.ceiling, ls="--", color="#7f8c9b", lw=1.0)
    plain(axes, "canaries", "exposure, bits")
    axes.set_xticks(range(len(sides)), [name for name, _ in sides])
    axes.set_xlim(-0.5, 1.5)


def as_svg(figure: Figure) -> str:
    """The picture as text.

    Args:
      figure: of `drawn`.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
