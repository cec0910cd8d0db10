"""Which arms no other arm beats in accuracy and in a cost."""

import numpy as np

from fedjax_fm.experiments.joint.ways import pairs
from fedjax_fm.study.results import Results

ARM_NAMES = {f"{part}_{way}": (part, way) for part, way in pairs()}


def mean(results: Results, arm: str, score: str) -> float:
    """The mean of a score over an arm's seeds, as arms return it.

    Args:
      results: of the study.
      arm: its name.
      score: its name.

    Returns:
      NaN where a seed has none.
    """
    known = {one.name: one for one in results.scores}
    return float(np.mean(results.values(arm, known[score])))


def front(results: Results, cost: str) -> list[str]:
    """The arms on the front: more accuracy costs more, by means over seeds.

    Means alone decide: two arms whose intervals meet may change places with other seeds.

    Args:
      results: of the study.
      cost: a score of which less is better.
    """
    arms = [arm for arm in ARM_NAMES if arm in results.arms]
    points = {
        arm: (mean(results, arm, results.primary.name), mean(results, arm, cost))
        for arm in arms
    }
    points = {arm: point for arm, point in points.items() if np.isfinite(point).all()}
    return [arm for arm in points if not _is_beaten(points, arm)]


def _is_beaten(points: dict[str, tuple[float, float]], arm: str) -> bool:
    """Whether another arm has no less accuracy for no more, and is not its equal."""
    accuracy, cost = points[arm]
    return any(
        other[0] >= accuracy and other[1] <= cost and other != (accuracy, cost)
        for other in points.values()
    )
