"""HeteroFL and FjORD: half of the clients carry the whole network, half a narrow one."""

from collections.abc import Callable

import numpy as np

from fedjax_fm import algorithms, study
from fedjax_fm.algorithms.nested import nest
from fedjax_fm.experiments.shared.perceptron import TASK
from fedjax_fm.experiments.sparse_fl.arms import first, scores, sgd, trained

NARROW = 0.25  # the widest model that all clients can carry
RULES = {
    "w0": (None, "width"),
    "w1": ("width", "width"),
    "w2": ("width", "labels"),
}


def by_width(name: str) -> Callable[[study.Run], dict[str, float]]:
    """An arm: HeteroFL or FjORD.

    Args:
      name: of the method.
    """

    def arm(run: study.Run) -> dict[str, float]:
        delta = first(run)
        prefixes = nest(delta, RULES)
        n = run.data.clients.n_clients
        carried = np.where(np.arange(n) % 2 == 0, 1.0, NARROW)
        if name == "fjord":
            given = (prefixes, (NARROW, 0.5, 1.0), carried)
        else:
            given = (prefixes, carried)
        method = getattr(algorithms, name)
        algorithm = method(TASK, sgd(run), *given, **study.walk(run.config))
        return scores(run, trained(run, algorithm, delta))

    return arm
