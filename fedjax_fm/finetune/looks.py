"""How often a run is scored while it trains, so that this costs little of it."""

import math
from typing import NamedTuple

import numpy as np

from fedjax_fm.finetune.data import Data, length, sizes
from fedjax_fm.finetune.settings import Settings

MOST = 10  # evaluations of a run, unless asked for
SHARE = 0.1  # of a run's cost, unless asked for
# A row that is scored costs a forward pass, one that trains a backward pass, too: a third
# where all weights train, half where the frozen ones take no gradient. The larger counts.
COST = 0.5


class Looks(NamedTuple):
    """The evaluations of a run.

    Attributes:
      every: rounds between two of them.
      count: of them in all.
      rows: that each scores.
      share: of the run's cost, counted in rows.
    """

    every: int
    count: int
    rows: int
    share: float


def planned(settings: Settings, data: Data, rounds: int, rows_a_round: float) -> Looks:
    """How often to score, and what it costs.

        share = E / (E + T),  E = COST evaluations rows,  T = rounds rows_a_round

    Args:
      settings: may say how often.
      data: has the rows that are scored.
      rounds: of the run.
      rows_a_round: that all clients of a round train on, each as often as it is read.

    Returns:
      As asked; else at most `MOST` evaluations and, with more than one, `SHARE` of the
      cost. The last round is always scored.
    """
    rows = sum(map(length, data.judged))
    trained = rounds * rows_a_round
    every = settings.every
    if every is None:
        most = MOST
        if rows:
            most = int(SHARE * trained / ((1 - SHARE) * COST * rows))
        every = math.ceil(rounds / max(1, min(MOST, most)))
    every = max(1, min(every, rounds))
    count = math.ceil(rounds / every)
    scored = COST * count * rows
    share = scored / (scored + trained) if scored else 0.0
    return Looks(every=every, count=count, rows=rows, share=share)


def rows_a_round(settings: Settings, data: Data) -> float:
    """Rows that the clients of a round train on; of epochs, those of clients of mean size.

    Args:
      settings: have the cohort, and steps or epochs.
      data: has the clients.
    """
    cohort = min(settings.cohort, len(data.train))
    if settings.epochs is not None:
        return cohort * settings.epochs * float(np.mean(sizes(data.train)))
    return float(cohort * settings.steps["local_steps"] * settings.batch_size)


def told(looks: Looks) -> str:
    """The plan in a line.

    Args:
      looks: of a run.
    """
    times = "once" if looks.count == 1 else f"{looks.count} times"
    return (
        f"evaluation: {looks.rows:,} examples every {looks.every} rounds, {times} a seed, "
        f"about {100 * looks.share:.0f} % of the cost by count of examples"
    )
