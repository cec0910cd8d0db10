"""Times one workload: ours alone, or in turn with a peer that computes the same.

That it does is checked first.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_fm.experiments.bench.environments import PeerError
from fedjax_fm.experiments.bench.protocol import Data
from fedjax_fm.experiments.bench.side import Side

TOLERANCE = 1e-3
PAUSE = 0.05  # seconds between turns: worker threads spin for a moment after their work


def distance(
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    start: dict[str, np.ndarray],
) -> float:
    """How far apart two results are, relative to how far training went.

        ||ours - theirs|| / ||ours - start||, over all arrays

    Args:
      ours: {name: array} after training.
      theirs: {name: array} after training.
      start: {name: array} before it.

    Raises:
      PeerError: other names or shapes.
    """
    if set(ours) != set(theirs):
        raise PeerError(f"expected the parameters {sorted(ours)}, got {sorted(theirs)}")
    wrong = [name for name in ours if ours[name].shape != theirs[name].shape]
    if wrong:
        raise PeerError(f"parameters of another shape: {wrong}")

    def norm(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
        total = 0.0
        for name in ours:
            apart = a[name].astype(float) - b[name]
            total += float(np.sum(apart**2))
        return np.sqrt(total)

    return float(norm(ours, theirs) / norm(ours, start))


def check(ours: Side, theirs: Side, start: dict[str, np.ndarray]) -> float:
    """The distance of both sides after the first call.

    Args:
      ours: our side.
      theirs: the peer.
      start: {name: array} before training.

    Raises:
      PeerError: the two sides did not compute the same.
    """
    found = distance(ours.result, theirs.result, start)
    if not found <= TOLERANCE:  # NaN is no agreement either
        raise PeerError(
            "computes something else: after one call its parameters are "
            f"{found:.2g} (relative) from ours"
        )
    return found


def in_turn(sides: Sequence[Side], repeats: int) -> list[list[dict]]:
    """Calls the sides in turn, never two of them at once.

    Args:
      sides: that are called.
      repeats: calls of each.

    Returns:
      The answers of each side.
    """
    answers: list[list[dict]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, own in zip(sides, answers, strict=True):
            time.sleep(PAUSE)
            own.append(side.call())
    return answers


def measure(
    name: str,
    data: Data,
    ours: Sequence[str],
    theirs: Sequence[str] | None = None,
    repeats: int = 5,
) -> dict[str, Any]:
    """Medians over some calls, of our side alone or of both.

    Args:
      name: the workload.
      data: of the workload.
      ours: command that starts our side.
      theirs: command that starts the peer; None to time our side alone.
      repeats: calls of each side.

    Returns:
      Seconds, memory, and the peer's seconds and agreement.

    Raises:
      PeerError: the peer failed, or the two sides disagree.
      RuntimeError: our own side failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        agreement = None
        if theirs is not None and not data.is_full_batch:
            # Shuffles differ, so the sides are compared on full batches of a few clients.
            small = Path(folder) / "full-batch.npz"
            data.full_batch().save(small)
            with (
                Side(ours, name, small, error=RuntimeError) as one,
                Side(theirs, name, small) as other,
            ):
                agreement = check(one, other, data.start)
        data.save(path)
        with Side(ours, name, path, error=RuntimeError) as one:
            if theirs is None:
                (mine,) = in_turn([one], repeats)
                return _summary(one, mine, data)
            with Side(theirs, name, path) as other:
                if agreement is None:
                    agreement = check(one, other, data.start)
                mine, others = in_turn([one, other], repeats)
                row = _summary(one, mine, data)
                peer = _summary(other, others, data)
    return row | {
        "peer_seconds": peer["seconds"],
        "ratio": peer["seconds"] / row["seconds"],
        "peer_compile_seconds": peer["compile_seconds"],
        "relative_distance": agreement,
    }


def _summary(side: Side, answers: list[dict], data: Data) -> dict[str, Any]:
    seconds = statistics.median(s for answer in answers for s in answer["seconds"])
    return {
        "seconds": seconds,
        "compile_seconds": max(side.first_seconds - seconds * data.rounds, 0.0),
        "peak_rss_bytes": max(answer["peak_rss_bytes"] for answer in answers),
    }
