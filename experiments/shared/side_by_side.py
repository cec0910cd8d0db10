"""All learning rates of an arm as one program, while it is tuned."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import study
from fedjax_fm.engine import SimulationState
from fedjax_fm.types import Algorithm, Tree

Score = Callable[[ffm.Simulator, SimulationState], float]


def scores_by_rate(
    run: study.Run,
    algorithm: Callable[..., Algorithm],
    rates: Sequence[float],
    delta: Tree,
    rounds: int,
    *,
    score: Score,
    **how: Any,
) -> dict[float, float]:
    """{learning rate: score} after all rounds on the clients of `run.data.train`.

    Args:
      run: of the arm.
      algorithm: `learning_rate -> algorithm`, of a traced number.
      rates: all of them.
      delta: the trainable tree.
      rounds: of every lane.
      score: of the model of a lane.
      **how: more for `Simulator`.

    Returns:
      NaN at a rate at which training was not finite.
    """
    clients = ffm.Population.from_clients(run.data.train)
    simulator = ffm.Simulator(algorithm(rates[0]), clients, seed=run.seed, **how)
    found = ffm.sweep(
        simulator,
        delta,
        rounds,
        seeds=(run.seed,),
        hyper={"learning_rate": rates},
        algorithm=algorithm,
    )
    scores = dict.fromkeys(rates, float("nan"))
    for lane, rate in enumerate(rates):
        if found.rounds[lane] == rounds:
            scores[rate] = score(simulator, found.state(lane))
    return scores


def finite(score: float) -> float:
    """The score of a rate, if training was finite there.

    Args:
      score: of `scores_by_rate`.

    Raises:
      FloatingPointError: it was not.
    """
    if np.isnan(score):
        raise FloatingPointError("a client's training was not finite")
    return score
