"""Draws docs/round.svg: `python docs/draw_round.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "round"  # the same file each time
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

USER, ENGINE, WIRE, STORE = "#dbeafe", "#f1f5f9", "#fde68a", "#dcfce7"
BOXES = {  # name: (x, y, width, height, colour, text)
    "server": (0.2, 8.3, 2.6, 0.9, STORE, "server state\ndelta, optimizer, ..."),
    "broadcast": (3.4, 8.3, 1.9, 0.9, USER, "broadcast"),
    "down": (5.8, 8.3, 2.3, 0.9, WIRE, "downlink\nencode, decode"),
    "outer": (8.6, 8.3, 2.9, 0.9, USER, "client(backbone, message)\nonce a device"),
    "backbone": (8.6, 9.8, 2.9, 0.7, STORE, "backbone (frozen operand)"),
    "cohort": (0.2, 6.3, 2.6, 0.9, ENGINE, "cohort ids\nsampler, behaviour, selects"),
    "deal": (3.4, 6.3, 1.9, 0.9, ENGINE, "deal into blocks\nlongest first"),
    "store": (
        0.2,
        4.3,
        2.6,
        0.9,
        STORE,
        "clients' states [N, ...]\nand channels' residuals",
    ),
    "gather": (3.4, 4.3, 1.9, 0.9, ENGINE, "gather\nonce a round"),
    "address": (6.0, 5.2, 1.9, 0.9, USER, "address\n(if any)"),
    "one": (8.6, 5.2, 2.9, 0.9, USER, "one(mine, state, data, key)\nlocal steps"),
    "data": (6.0, 3.9, 1.9, 0.8, STORE, "examples, flat,\nby row number"),
    "up": (8.6, 3.8, 2.9, 0.9, WIRE, "uplink encode, decode"),
    "lift": (8.6, 2.4, 2.9, 0.9, USER, "lift: clip, weigh, multiply"),
    "sum": (5.0, 1.2, 2.9, 0.9, ENGINE, "sum over clients,\nblocks, devices (psum)"),
    "finish": (2.9, 1.2, 1.6, 0.9, USER, "finish"),
    "step": (0.2, 1.2, 2.2, 0.9, USER, "server step"),
}
ARROWS = [
    ("server", "broadcast"), ("broadcast", "down"), ("down", "outer"),
    ("backbone", "outer"), ("outer", "one"),
    ("cohort", "deal"), ("store", "gather"), ("deal", "gather"), ("gather", "address"),
    ("address", "one"), ("data", "one"),
    ("one", "up"), ("up", "lift"), ("lift", "sum"), ("sum", "finish"), ("finish", "step"),
]  # fmt: skip


def _edge(a: tuple, b: tuple) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the arrow from box a to box b starts and ends."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a[:4], b[:4]
    if ax + aw <= bx:
        return (ax + aw, ay + ah / 2), (bx, by + bh / 2)
    if bx + bw <= ax:
        return (ax, ay + ah / 2), (bx + bw, by + bh / 2)
    x = (max(ax, bx) + min(ax + aw, bx + bw)) / 2
    return ((x, ay), (x, by + bh)) if ay > by else ((x, ay + ah), (x, by))


def draw(path: Path) -> None:
    """Writes the figure."""
    figure, axes = plt.subplots(figsize=(12, 10))
    axes.set(xlim=(0, 11.9), ylim=(0.2, 10.7))
    axes.axis("off")
    frame = FancyBboxPatch(
        (5.75, 2.2),
        5.95,
        5.3,
        boxstyle="round,pad=0.05",
        fc="none",
        ec="#64748b",
        ls="--",
    )
    axes.add_patch(frame)
    axes.text(
        5.9,
        7.15,
        "one client\nvmap in a block, loop over blocks,\nshard_map over devices",
        color="#475569",
        va="top",
    )
    for x, y, width, height, colour, text in BOXES.values():
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0.04",
                fc=colour,
                ec="#334155",
            )
        )
        axes.text(
            x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10
        )
    for start, end in ARROWS:
        tail, head = _edge(BOXES[start], BOXES[end])
        axes.annotate(
            "", head, tail, arrowprops={"arrowstyle": "-|>", "color": "#334155"}
        )
    around = {
        "arrowstyle": "-|>",
        "color": "#334155",
        "connectionstyle": "arc3,rad=-0.02",
    }
    axes.annotate("", (0.08, 8.6), (0.08, 1.75), arrowprops=around)
    legend = {"you write": USER, "engine": ENGINE, "wire, billed": WIRE, "kept": STORE}
    for i, (text, colour) in enumerate(legend.items()):
        axes.add_patch(
            FancyBboxPatch(
                (0.2 + 2.0 * i, 9.9),
                0.3,
                0.3,
                boxstyle="round,pad=0.02",
                fc=colour,
                ec="#334155",
            )
        )
        axes.text(0.65 + 2.0 * i, 10.05, text, va="center")
    axes.text(
        0.2,
        0.55,
        "An exchange. A round is a sequence of them; Repeat runs some of them again and again.",
        color="#475569",
    )
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).with_name("round.svg"))
