"""A small problem of which anything can be changed."""

from typing import NamedTuple

import numpy as np

from fedjax_fm.population import IidPartitioner
from fedjax_fm.types import Tree

SIZES = (7, 1, 12, 5, 3, 9, 12, 4)  # examples of each client
FEATURES = 6


class Problem(NamedTuple):
    """What is trained, on whose data; every field may differ in a later session.

    Attributes:
      rank: of the two factors that are trained.
      width: of the hidden layer.
      rate: of the clients' SGD.
      seed: of the run.
      data_seed: of the clients' examples.
      empty: clients without examples, after the others.
      nan_client: whose data are NaN; None: nobody's.
      nobody_in: the round, from 0, in which no upload arrives; None: there is none.
      raises: whether the user's loss raises when it is traced.
      partition: parts into which the examples are dealt; None: as `SIZES` says.
    """

    rank: int = 2
    width: int = 4
    rate: float = 0.05
    seed: int = 5
    data_seed: int = 0
    empty: int = 0
    nan_client: int | None = None
    nobody_in: int | None = None
    raises: bool = False
    partition: int | None = None


def clients_of(problem: Problem) -> list[dict[str, np.ndarray]]:
    """The examples of each client.

    Args:
      problem: what is trained.

    Raises:
      ValueError: they cannot be dealt into so many parts.
    """
    rng = np.random.default_rng(problem.data_seed)
    clients = []
    for size in (*SIZES, *[0] * problem.empty):
        x = rng.normal(size=(size, FEATURES)).astype(np.float32)
        clients.append({"x": x, "y": rng.normal(size=size).astype(np.float32)})
    if problem.partition is not None:
        rows = {name: np.concatenate([one[name] for one in clients]) for name in "xy"}
        dealt = IidPartitioner(problem.partition, seed=0).partition(rows)
        return [{name: rows[name][part] for name in "xy"} for part in dealt]
    if problem.nan_client is not None:
        clients[problem.nan_client]["x"][:] = np.nan
    return clients


def trees_of(problem: Problem) -> tuple[Tree, Tree]:
    """The delta that training starts from, and the backbone.

    Args:
      problem: what is trained.
    """
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32) / 2

    backbone = {"w": draw(FEATURES, problem.width), "v": draw(problem.width)}
    delta = {
        "a": draw(FEATURES, problem.rank),
        "b": np.zeros((problem.rank, problem.width), np.float32),
    }
    return delta, backbone
