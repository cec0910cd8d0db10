"""Averaging within masks that stay: what methods that choose masks are compared with."""

from typing import Any

import jax
import optax

from fedjax_fm.algorithms.averaging import averaging
from fedjax_fm.algorithms.pruning.parts import PrunedState
from fedjax_fm.algorithms.pruning.rule import Rule, nothing, pruned_averaging
from fedjax_fm.sparsity import Layers
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Algorithm, Task


def within_masks(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    masks: Flat,
    **walk: Any,
) -> Algorithm:
    """FedAvg on the entries that masks keep; the others are zero.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      masks: bool by the dotted path of a leaf; leaves without one are whole.
      **walk: `local_steps` or `epochs`, and `batch_size`.
    """
    average = averaging(task, client_optimizer, None, weighted=True, **walk)

    def same(state: PrunedState, key: jax.Array) -> PrunedState:
        return state

    paths = "|".join(f"^{name}$" for name in masks)
    rule = Rule(first=lambda weights: masks, next=same, own=nothing, are_known=False)
    return pruned_averaging(average, Layers(paths), rule)
