"""Scores of groups of examples, by the server's model or by the clients' own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_fm.evaluation.evaluate import evaluate
from fedjax_fm.study.run import Simulated
from fedjax_fm.types import Task

Arrays = Mapping[str, np.ndarray]


def joined(clients: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The clients' rows one after the other.

    Args:
      clients: {column: [n, ...]} of each.

    Returns:
      {column: [sum of n, ...]}.

    Example:
      >>> rows = [{"x": np.array([1, 2])}, {"x": np.array([3])}]
      >>> joined(rows)["x"].tolist()
      [1, 2, 3]
    """
    return {
        name: np.concatenate([client[name] for client in clients])
        for name in clients[0]
    }


def judged(
    run: Simulated,
    task: Task,
    groups: Sequence[Arrays],
    name: str,
    **how: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of one score over each group, and the group's weight among all.

    Args:
      run: from `study.Run.simulate`. With personal models, group k is judged by that of
        client k modulo their number: groups that are drawn at random are judged by the
        model of a random client.
      task: what is computed of each example.
      groups: {column: [n, ...]} of each; none is empty.
      name: of the score.
      **how: `batch_size` and `bucket` of `evaluate`.

    Returns:
      (means f64[groups], weights f64[groups]).
    """
    n_models = run.simulator.population.n_clients if run.simulator.is_personal else 1
    n = len(groups)
    means, weights = np.zeros(n), np.zeros(n)
    for k in range(min(n_models, n)):
        mine = groups[k::n_models]
        scores = evaluate(task, *run.model(k), joined(mine), **how)
        counted = scores.get("weight", np.ones_like(scores["loss"]))
        counted = counted.astype(np.float64)
        sizes = [_size(group) for group in mine]
        weights[k::n_models] = _sums(counted, sizes)
        means[k::n_models] = _sums(counted * scores[name], sizes) / weights[k::n_models]
    return means, weights


def _size(group: Arrays) -> int:
    return len(next(iter(group.values())))


def _sums(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The sum over each part of some rows."""
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return np.array([part.sum() for part in parts])
