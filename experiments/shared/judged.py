"""Scores of groups of examples by whatever models a run ended with.

The server's, or one for each training client.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import study

Arrays = Mapping[str, np.ndarray]


def joined(clients: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The clients' rows one after the other."""
    return {
        name: np.concatenate([client[name] for client in clients])
        for name in clients[0]
    }


def judged(
    run: study.Simulated,
    task: ffm.Task,
    groups: Sequence[Arrays],
    name: str,
    **how: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of one score over each group, and what the group counts in a mean over all.

    Args:
      run: from `study.Run.simulate`. Where every client has a model of its own, group k
        is judged by that of client k, counted round: groups that are drawn at random
        are judged by the model of a random client.
      task: what is computed of each example.
      groups: none of them empty.
      name: of the score.
      how: `batch_size` and `bucket` of `evaluate`.

    Returns:
      (f64[groups], f64[groups]).
    """
    n_models = run.simulator.population.n_clients if run.simulator.is_personal else 1
    means, weights = np.zeros(len(groups)), np.zeros(len(groups))
    for k in range(min(n_models, len(groups))):
        mine = groups[k::n_models]
        scores = ffm.evaluate(task, *run.model(k), joined(mine), **how)
        counted = scores.get("weight", np.ones_like(scores["loss"])).astype(np.float64)
        places = np.cumsum([len(next(iter(group.values()))) for group in mine])[:-1]
        weights[k::n_models] = [part.sum() for part in np.split(counted, places)]
        totals = [part.sum() for part in np.split(counted * scores[name], places)]
        means[k::n_models] = totals / weights[k::n_models]
    return means, weights
