"""FedMD, its start, and clients alone."""

from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import study
from fedjax_fm.algorithms.fedmd import fedmd
from fedjax_fm.experiments.feddf.models import (
    NAMES,
    accuracies,
    architectures,
    groups_of,
    own_models,
    weights,
)
from fedjax_fm.types import Tree


def transferred(run: study.Run) -> tuple[Tree, ...]:
    """Both models after training on the labelled third of the public images."""
    labelled = {
        name: array[: len(array) // 3] for name, array in run.data.public.items()
    }
    population = ffm.Population.from_clients([labelled])

    def one(architecture: Any, start: Tree) -> Tree:
        algorithm = ffm.fedavg(
            architecture.task,
            architecture.optimizer,
            epochs=20,
            batch_size=run.config.batch_size,
        )
        simulator = ffm.Simulator(algorithm, population, cohort_size=1, seed=run.seed)
        after, _ = simulator.run(simulator.init(start), 1)
        return after.delta

    def each() -> tuple[Tree, ...]:
        pairs = zip(architectures(run["rate"]), weights(run.seed), strict=True)
        return tuple(one(*pair) for pair in pairs)

    return run.once(("transferred", run["rate"]), each)


def digest(run: study.Run) -> dict[str, float]:
    """FedMD."""
    return parties(run, epochs=1, digest_optimizer=optax.adam(run["digest_rate"]))


def clients_alone(run: study.Run) -> dict[str, float]:
    """FedMD without digests."""
    return parties(run, epochs=run["epochs"], digest_epochs=0)


def parties(run: study.Run, **how: Any) -> dict[str, float]:
    """Accuracies of the clients' models after FedMD.

    Args:
      run: of the arm.
      **how: settings of `fedmd`.
    """
    config, found = run.config, run.data
    groups = groups_of(found)
    algorithm = fedmd(
        architectures(run["rate"]),
        groups,
        {"x": found.public["x"]},
        n_classes=10,
        n_public=2 * len(found.public["x"]) // 3,
        digest_batch_size=32,
        start_epochs=10,
        batch_size=config.batch_size,
        **how,
    )
    done = run.simulate(
        algorithm,
        found.clients,
        transferred(run),
        backbone=((), ()),
    )
    return accuracies(own_models(done, groups), groups, found.test)


def start(run: study.Run) -> dict[str, float]:
    """The models that FedMD starts from."""
    groups, both = np.arange(len(NAMES)), transferred(run)
    return accuracies(list(both), groups, run.data.test)


def untrained(run: study.Run) -> dict[str, float]:
    """Random weights."""
    groups, both = np.arange(len(NAMES)), weights(run.seed)
    return accuracies(list(both), groups, run.data.test)
