"""The arms: where a mask comes from, and from which weights it is trained."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import sparsity, study
from fedjax_fm.algorithms import lottery_ticket
from fedjax_fm.experiments.shared.controls import as_it_begins
from fedjax_fm.experiments.shared.fixed_masks import within_masks
from fedjax_fm.experiments.shared.perceptron import TASK, first_weights
from fedjax_fm.sparsity.layers import Flat

levels_of = {"larger": 0, "smaller": 1}  # places in `Config.levels`
NEW, MASK = 100, 200  # streams of a seed


def sgd(run: study.Run) -> optax.GradientTransformation:
    """Of the clients.

    Args:
      run: has the rate.
    """
    return optax.sgd(run["rate"], momentum=0.9)


def first(run: study.Run, stream: int = 0) -> Any:
    """The weights that a seed's run begins with, or others.

    Args:
      run: of a seed.
      stream: 0 for the first ones.
    """
    key = jax.random.fold_in(jax.random.key(run.seed), stream)
    return first_weights(run.config.width, key)


def trained(
    run: study.Run, algorithm: Any, delta: Any, rounds: int, shuffle: bool = False
) -> study.Simulated:
    """A run with all clients in each round.

    Args:
      run: of a seed.
      algorithm: that trains.
      delta: where it begins.
      rounds: how many.
      shuffle: whether labels are permuted.
    """
    clients = run.data.clients
    if shuffle:
        arrays = study.shuffled_labels(clients.arrays, run.seed)
        clients = ffm.Population.from_arrays(arrays, clients.offsets)
    return run.simulate(
        algorithm,
        clients,
        delta,
        rounds,
        cohort_size=clients.n_clients,
        task=TASK,
        test=run.data.test,
        every=rounds,
        devices=1,  # the network is too small for two, or for several clients at once
        block_size=1,
    )


def dense(run: study.Run) -> dict[str, float]:
    """The whole network, for the rounds of a level."""
    algorithm = ffm.fedavg(TASK, sgd(run), **study.walk(run.config))
    found = trained(run, algorithm, first(run), run.config.rounds)
    return {"accuracy": found.scores["accuracy"], "density": 1.0}


def untrained(run: study.Run) -> dict[str, float]:
    """The whole network, as it begins."""
    return {
        "accuracy": as_it_begins(TASK, first(run), (), run.data.test),
        "density": 1.0,
    }


def masks_of(run: study.Run, levels: int) -> Flat:
    """The masks that are found in some levels.

    Args:
      run: of a seed.
      levels: prunings.
    """
    rounds = run.config.rounds

    def search() -> study.Simulated:
        how: dict[str, Any] = {
            "levels": levels,
            "rounds_per_level": rounds,
            **study.walk(run.config),
        }
        algorithm = lottery_ticket(TASK, sgd(run), **how)
        return trained(run, algorithm, first(run), levels * rounds)

    found = run.simulate_once(("levels", levels, run["rate"]), search)
    return jax.tree.map(np.array, found.state.carry.server.masks)


def at_random(run: study.Run, masks: Flat) -> Flat:
    """Masks with as many entries of each layer, drawn at random.

    Args:
      run: of a seed.
      masks: whose densities are taken.
    """
    key = jax.random.fold_in(jax.random.key(run.seed), MASK)
    scores = sparsity.random({name: x for name, x in masks.items()}, key)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    return sparsity.top_of_layers(scores, counts, sparsity.Layers())


def ticket(
    name: str, size: str, shuffle: bool = False, trains: bool = True
) -> Callable[[study.Run], dict[str, float]]:
    """An arm: a mask of some levels, trained once more.

    Args:
      name: "ticket", "redrawn" (new weights) or "random" (a random mask).
      size: of `levels_of`.
      shuffle: whether labels are permuted in the last training.
      trains: whether there is one.
    """

    def arm(run: study.Run) -> dict[str, float]:
        masks = masks_of(run, run.config.levels[levels_of[size]])
        if name == "random":
            masks = at_random(run, masks)
        start = first(run, NEW if name == "redrawn" else 0)
        if trains:
            algorithm = within_masks(TASK, sgd(run), masks, **study.walk(run.config))
            scores = trained(run, algorithm, start, run.config.rounds, shuffle).scores
        else:
            start = sparsity.masked(start, masks)
            scores = {"accuracy": as_it_begins(TASK, start, (), run.data.test)}
        kept = sum(int(mask.sum()) for mask in masks.values())
        density = kept / sum(mask.size for mask in masks.values())
        return {"accuracy": scores["accuracy"], "density": density}

    return arm
