"""The pruning methods of the study, each at one density of the trained layers' kernels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import fedjax_fm as ffm
from fedjax_fm import models, sparsity
from fedjax_fm.algorithms import gradual_pruning, movement_pruning
from fedjax_fm.experiments.shared.fixed_masks import within_masks
from fedjax_fm.sparsity import Layers

KERNELS, STACKED = r"^layer\..*kernel$", r"^layer\."
LAYERS = Layers(KERNELS, STACKED)
WHERE: dict[str, Any] = {"pruned": KERNELS, "stacked": STACKED}


class Place(NamedTuple):
    """What a method is given.

    Attributes:
      model: the layers that are trained.
      delta: their weights.
      task: the loss.
      adam: of the clients.
      rounds: of the run.
      key: of draws.
      walk: what a client does in a round.
    """

    model: Any
    delta: Any
    task: ffm.Task
    adam: optax.GradientTransformation
    rounds: int
    key: jax.Array
    walk: dict[str, Any]

    def schedule(self, density: float) -> dict[str, Any]:
        """The cubic schedule from a fifth of the rounds to three fifths of them.

        Args:
          density: share that stays at the end.
        """
        first, last = self.rounds // 5, 3 * self.rounds // 5
        return {"final_sparsity": 1 - density, "first": first, "last": max(last, 1)}


Method = Callable[[Place, float], ffm.Algorithm]


def random(place: Place, density: float) -> ffm.Algorithm:
    """Entries that are drawn before the first round.

    Args:
      place: what is trained.
      density: share that stays.
    """
    scores = sparsity.random(LAYERS.weights(place.delta), place.key)
    masks = sparsity.top_masks(scores, density, LAYERS)
    return within_masks(place.task, place.adam, masks, **place.walk)


def magnitude(place: Place, density: float) -> ffm.Algorithm:
    """The largest of the pretrained weights, chosen before the first round.

    Args:
      place: what is trained.
      density: share that stays.
    """
    scores = sparsity.magnitude(LAYERS.weights(place.delta))
    masks = sparsity.top_masks(scores, density, LAYERS)
    return within_masks(place.task, place.adam, masks, **place.walk)


def gradual(place: Place, density: float) -> ffm.Algorithm:
    """The largest weights, fewer from round to round: magnitude pruning as it is used.

    Args:
      place: what is trained.
      density: share that stays.
    """
    how = place.schedule(density) | WHERE | place.walk
    return gradual_pruning(place.task, place.adam, **how)


def movement(place: Place, density: float) -> ffm.Algorithm:
    """The weights that move away from zero, fewer from round to round.

    Args:
      place: what is trained.
      density: share that stays.
    """
    how = place.schedule(density) | WHERE | place.walk
    return movement_pruning(place.task, place.adam, **how)


def blocks(place: Place, density: float) -> ffm.Algorithm:
    """Heads and units by movement, which can be taken out of the arrays.

    Args:
      place: what is trained.
      density: share that stays.
    """
    of_units = models.unit_blocks(place.model)
    where: dict[str, Any] = {"blocks": of_units, "stacked": STACKED}
    how = place.schedule(density) | where | place.walk
    return movement_pruning(place.task, place.adam, **how)


METHODS: dict[str, Method] = {
    "random": random,
    "magnitude": magnitude,
    "gradual": gradual,
    "movement": movement,
    "blocks": blocks,
}
