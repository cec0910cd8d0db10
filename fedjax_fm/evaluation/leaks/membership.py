"""Who was trained on: an attacker's scores of members and of others, and what they tell.

Shokri et al. 2017, arXiv 1610.05820; Yeom et al. 2018, arXiv 1709.01604 (the loss);
Carlini et al. 2022, arXiv 2112.03570 (report the power at few false alarms).
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.leaks.intervals import (
    Interval,
    area_between,
    area_interval,
    share_interval,
)


class Membership(NamedTuple):
    """How well a score tells members from others.

    Attributes:
      area: under the ROC curve; 0.5 tells nothing, and 1 tells them all apart.
      power: the share of members that are found with so few false alarms.
      false_alarms: the share of others that are taken for members then.
      n_members: examples that were trained on.
      n_others: examples that were not.
    """

    area: Interval
    power: Interval
    false_alarms: float
    n_members: int
    n_others: int

    @property
    def is_found(self) -> bool:
        """Whether members score higher than others, beyond chance."""
        return self.area.low > 0.5


def membership(
    members: Any, others: Any, *, most_false_alarms: float = 0.01
) -> Membership:
    """Judges an attack by its scores of examples whose membership is known.

    The threshold of `power` is the least score that at most a share
    `most_false_alarms` of the others exceeds. Of fewer than 100 others no one may
    exceed it at 1 %.

    Args:
      members: f64[m], scores of examples that were trained on; a larger one says
        "member".
      others: f64[n], scores of examples that were not, from the same source.
      most_false_alarms: of the others, 0 <= share < 1.

    Returns:
      Areas and shares with their 95 % intervals, for independent examples: those of one
      client are often alike, and the truth is then less certain. The interval of
      `power` takes the threshold as given.

    Raises:
      TypeError, ValueError: a side is empty or not finite, or a share out of bounds.

    References:
      Carlini et al. 2022, arXiv 2112.03570, section III.

    Example:
      >>> found = membership([3.0, 2.0, 0.0], [1.0, 0.5, -1.0])
      >>> round(found.area.value, 3), round(found.power.value, 3), found.false_alarms
      (0.778, 0.667, 0.0)
    """
    checks.real("most_false_alarms", most_false_alarms, least=0, below=1)
    inside = _scores("members", members)
    outside = _scores("others", others)
    m, n = len(inside), len(outside)
    falling = np.sort(outside)[::-1]
    threshold = falling[int(most_false_alarms * n)]
    hits = int((inside > threshold).sum())
    return Membership(
        area=area_interval(area_between(inside, outside), m, n),
        power=share_interval(hits, m),
        false_alarms=float((outside > threshold).mean()),
        n_members=m,
        n_others=n,
    )


def _scores(name: str, values: Any) -> np.ndarray:
    """f64[n], n >= 1, all finite."""
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not len(found):
        raise ValueError(
            f"expected {name} as one row of scores, at least one, got shape "
            f"{list(found.shape)}"
        )
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        raise ValueError(
            f"expected finite scores, got {name}[{wrong[0]}]={found[wrong[0]]}"
        )
    return found
