"""PruneFL's first stage at one client: when it begins to prune, and when it ends.

Jiang et al. 2022, arXiv 1909.12326, initial pruning, and the authors' code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.sparsity import masked
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Task, Tree


class Looks(NamedTuple):
    """When the training has gone far enough for a mask.

    Attributes:
      task: with the metric.
      examples: {name: [n, ...]}, of the client.
      score: the metric.
      threshold: what its mean has to reach.
      every: rounds between looks.
    """

    task: Task
    examples: dict[str, Any]
    score: str
    threshold: float
    every: int

    def is_good(self, delta: Tree, backbone: Tree) -> bool:
        """Whether the score on all examples reaches the threshold.

        Args:
          delta: what is trained.
          backbone: what is frozen.

        Raises:
          ValueError: the task has no such metric.
        """
        _, metrics = jax.jit(self.task.loss)(delta, backbone, self.examples, None)
        if self.score not in metrics:
            raise ValueError(
                f"the task has no metric score={self.score!r}, it has {sorted(metrics)}"
            )
        return float(jnp.mean(metrics[self.score])) >= self.threshold


class Stability(NamedTuple):
    """When the density is stable.

    Attributes:
      every: rounds between masks.
      change: relative change that counts as none.
      times: masks in a row that change so little.
      most: rounds, at most.
    """

    every: int
    change: float
    times: int
    most: int


def until_good(
    simulator: Simulator, looks: Looks, delta: Tree, most: int
) -> tuple[Tree, int]:
    """Trains without a mask until the score is good.

    Args:
      simulator: of one client, without masks.
      looks: when it is good.
      delta: where it starts.
      most: rounds, at most.

    Returns:
      (weights, rounds).
    """
    state, done = simulator.init(delta), 0
    while done < most and not looks.is_good(state.delta, simulator.backbone):
        some = min(looks.every, most - done)
        state, _ = simulator.run(state, some)
        done += some
    return state.delta, done


def until_stable(
    simulator: Simulator, stop: Stability, delta: Tree, masks: Flat
) -> tuple[Tree, Flat, int]:
    """Prunes until the density has changed little, some times in a row.

    Args:
      simulator: of one client, with PruneFL.
      stop: when that is.
      delta: where it starts.
      masks: that keep all.

    Returns:
      (weights, zero where they are pruned; masks; rounds).
    """
    state, done, stable = simulator.init(delta), 0, 0
    last = 1.0
    while done + stop.every <= stop.most and stable < stop.times:
        state, _ = simulator.run(state, stop.every)
        masks = jax.tree.map(np.array, state.carry.server.masks)
        done += stop.every
        density = density_of(masks)
        is_near = abs(density - last) <= stop.change * last
        stable, last = (stable + 1 if is_near else 0), density
    masks = jax.tree.map(jnp.asarray, masks)
    return masked(state.delta, masks), masks, done


def density_of(masks: Flat) -> float:
    """The share of entries that is kept.

    Args:
      masks: bool by path.
    """
    kept = sum(int(mask.sum()) for mask in masks.values())
    return kept / trees.size(masks)
