"""The arms: a method at a density, on the clients' words."""

from collections.abc import Callable

import jax
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.pruning.methods import METHODS, Place
from fedjax_fm.experiments.shared.words import with_shuffled_labels


def trained(method: str, density: float, shuffle: bool = False) -> Callable:
    """An arm: a method at a density; 1 for all weights.

    Args:
      method: of `METHODS`, or "dense".
      density: share of the kernels that stays.
      shuffle: whether labels are permuted.
    """

    def arm(run: study.Run) -> dict[str, float]:
        config, words = run.config, run.data
        adapted = peft.apply(words.model, peft.full())
        task = tasks.token_classification(adapted)
        clients = words.clients
        if shuffle:
            clients = with_shuffled_labels(clients, run.seed)
        place = Place(
            model=words.model,
            delta=adapted.delta,
            task=task,
            adam=optax.adam(run["rate"]),
            rounds=config.rounds,
            key=jax.random.key(run.seed),
            walk=study.walk(config),
        )
        if method == "dense":
            algorithm = ffm.fedavg(task, place.adam, **place.walk)
        else:
            algorithm = METHODS[method](place, density)
        found = run.simulate(
            algorithm,
            ffm.Population.from_clients(clients),
            adapted.delta,
            config.rounds,
            backbone=adapted.backbone,
            cohort_size=config.cohort,
            task=task,
            test=words.test,
            every=config.rounds,
            block_size=1,
        )
        last = found.metrics["density"][-1] if method != "dense" else 1.0
        return {"accuracy": found.scores["accuracy"], "density": float(last)}

    return arm


def untrained(run: study.Run) -> dict[str, float]:
    """The pretrained layer as it is, with a random head."""
    adapted = peft.apply(run.data.model, peft.full())
    task = tasks.token_classification(adapted)
    scores = ffm.evaluate(task, adapted.delta, adapted.backbone, run.data.test)
    return {"accuracy": means(scores)["accuracy"]}
