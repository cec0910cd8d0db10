"""FedSGD and FedAvg until the target is reached."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, study
from fedjax_fm.callbacks import Stop
from fedjax_fm.experiments.local_work.characters import TASK, weights
from fedjax_fm.experiments.shared.controls import as_it_begins


def fedsgd(run: study.Run) -> ffm.Algorithm:
    """One step a round, with the gradient of all of a role's characters."""
    return algorithms.fedsgd(TASK, optax.sgd(run["rate"]), epochs=1, batch_size=400)


def fedavg(epochs: int) -> Callable[[study.Run], ffm.Algorithm]:
    """FedAvg with E epochs of batches of ten."""

    def make(run: study.Run) -> ffm.Algorithm:
        how = {"epochs": epochs, "batch_size": run.config.batch_size}
        return ffm.fedavg(TASK, optax.sgd(run["rate"]), **how)

    return make


def trained(
    run: study.Run, make: Callable[[study.Run], ffm.Algorithm], shuffle: bool = False
) -> dict[str, float]:
    """A run until the target is reached.

    Args:
      run: of the arm.
      make: the method.
      shuffle: whether the clients' characters to come are permuted.
    """
    config, clients = run.config, run.data.clients
    if shuffle:
        order = np.random.default_rng(run.seed).permutation
        clients = [{**one, "label": order(one["label"])} for one in clients]

    def reached(round: int, state: Any, metrics: Any) -> None:
        looks = metrics.get("eval_accuracy", np.zeros(1))
        if np.nanmax(looks) >= config.target:
            raise Stop("the target is reached")

    run.simulate(
        make(run),
        clients,
        weights(config, run.seed),
        cohort_size=min(config.cohort, len(clients)),
        task=TASK,
        test=run.data.test,
        every=config.every,
        looks=[reached],
    )
    return scores(run)


def scores(run: study.Run) -> dict[str, float]:
    """Rounds to the target, and where the run ended."""
    hits = [row for row in run.curve if row["eval_accuracy"] >= run.config.target]
    last = hits[0] if hits else run.curve[-1]
    sent = last["uplink_bytes"] + last["downlink_bytes"]
    return {
        "rounds": float(last["round"]),
        "accuracy": float(last["eval_accuracy"]),
        "megabytes": sent / 1e6,
    }


def untrained(run: study.Run) -> dict[str, float]:
    """The model as it begins."""
    accuracy = as_it_begins(TASK, weights(run.config, run.seed), (), run.data.test)
    return {"rounds": float(run.config.rounds), "accuracy": accuracy}
