"""Times one workload: ours alone, or in turn with a peer that has first been seen to
compute the same thing.
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
    """How far apart two results are, relative to how far training went: ||a - b|| / ||a
    - start||, over all arrays.
    """
    if set(ours) != set(theirs):
        raise PeerError(f"expected the parameters {sorted(ours)}, got {sorted(theirs)}")
    wrong = [name for name in ours if ours[name].shape != theirs[name].shape]
    if wrong:
        raise PeerError(f"parameters of another shape: {wrong}")

    def norm(a, b):
        return np.sqrt(
            sum(float(np.sum((a[n].astype(float) - b[n]) ** 2)) for n in ours)
        )

    return float(norm(ours, theirs) / norm(ours, start))


def check(ours: Side, theirs: Side, start: dict[str, np.ndarray]) -> float:
    """`distance` after the first call, or PeerError if the two sides did not do the same."""
    found = distance(ours.result, theirs.result, start)
    if not found <= TOLERANCE:  # NaN is no agreement either
        raise PeerError(
            "computes something else: after one call its parameters are "
            f"{found:.2g} (relative) from ours"
        )
    return found


def in_turn(sides: Sequence[Side], repeats: int) -> list[list[dict]]:
    """Each side's answers; never two sides at work at once."""
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
    """Medians over `repeats` calls and what else there is to say of both sides.

    Args:
      name: the workload.
      ours, theirs: commands that start the sides; `theirs` is None to time ours alone.

    Raises:
      PeerError: the peer failed, or the two disagree; RuntimeError: our own side failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        agreement = None
        if (
            theirs is not None and not data.is_full_batch
        ):  # shuffles differ: agree on full batches of a few clients
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
                return _summary(one, in_turn([one], repeats)[0], data)
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
