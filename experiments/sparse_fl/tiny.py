"""FedTiny at one per cent: a network that the server pretrained, and its statistics.

The first layer's sums are normalised by statistics that are part of what is frozen:

    z = x w0,  (z - mean) / sqrt(mean of squares - mean^2 + epsilon)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, study, tasks
from fedjax_fm.experiments.shared.fixed_masks import within_masks
from fedjax_fm.experiments.shared.perceptron import SMALL
from fedjax_fm.experiments.sparse_fl.arms import first, scores, sgd, trained
from fedjax_fm.types import Tree

Arrays = dict[str, jax.Array]


def logits(weights: Tree, backbone: Tree, batch: Arrays, key: Any) -> jax.Array:
    """f32[n, classes] of the normalised perceptron.

    Args:
      weights: {"w0", "w1", "w2"}.
      backbone: {"mean", "square"}: f32[units].
      batch: {"x": f32[n, pixels]}.
      key: not read.
    """
    mean, square = backbone["mean"], backbone["square"]
    scale = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + 1e-3)
    hidden = jax.nn.relu((batch["x"] @ weights["w0"] - mean) * scale)
    return jax.nn.relu(hidden @ weights["w1"]) @ weights["w2"]


TASK = tasks.from_logits(logits)


def statistics(delta: Tree, backbone: Tree, batch: Arrays, key: Any) -> Arrays:
    """What is averaged over examples, f32[n, units] each.

    Args:
      delta: the weights.
      backbone: not read.
      batch: {"x": f32[n, pixels]}.
      key: not read.
    """
    sums = batch["x"] @ delta["w0"]
    return {"mean": sums, "square": sums**2}


def _with(delta: Tree, backbone: Tree, found: Tree) -> tuple[Tree, Tree]:
    """The model that has these statistics."""
    return delta, found


class Pretrained(NamedTuple):
    """What the server knows before the first round."""

    delta: Tree
    statistics: Arrays


def pretrained(run: study.Run) -> Pretrained:
    """Trains on the server's images, then measures the statistics there.

    Args:
      run: of a seed.
    """

    def measured(delta: Tree) -> Arrays:
        found = statistics(delta, (), run.data.public, None)
        return {name: x.mean(axis=0) for name, x in found.items()}

    def make() -> Pretrained:
        start = first(run)
        algorithm = ffm.fedavg(TASK, optax.adam(1e-3), **study.walk(run.config))
        found = run.simulate(
            algorithm,
            ffm.Population.from_clients([run.data.public]),
            start,
            run.config.rounds,
            backbone=measured(start),
            cohort_size=1,
            travels=False,
            **SMALL,
        )
        delta = jax.tree.map(jnp.array, found.state.delta)
        return Pretrained(delta, measured(delta))

    return run.once("pretrained", make)


def tiny(candidates: int) -> Callable[[study.Run], dict[str, float]]:
    """An arm: FedTiny's two stages; or one candidate, whose mask stays.

    Args:
      candidates: masks among which clients choose; with one it is magnitude pruning.
    """

    def arm(run: study.Run) -> dict[str, float]:
        config, known = run.config, pretrained(run)
        selection = algorithms.fedtiny_selection(
            TASK,
            density=config.tiny,
            initial=known.statistics,
            statistics=statistics,
            with_statistics=_with,
            candidates=candidates,
            batch_size=config.batch_size,
        )
        backbone = known.statistics
        chosen = trained(
            run, selection, known.delta, rounds=1, backbone=backbone, task=TASK
        )
        masks = chosen.state.carry.server.chosen_masks()
        _, backbone = chosen.model()
        if candidates == 1:
            algorithm = within_masks(TASK, sgd(run), masks, **study.walk(run.config))
        else:
            stop = config.rounds // 2
            how: dict[str, Any] = {
                "masks": masks,
                "every": max(1, stop // 10),
                "stop": max(stop, 1),
            }
            algorithm = algorithms.fedtiny(
                TASK, sgd(run), **how, **study.walk(run.config)
            )
        found = trained(run, algorithm, known.delta, backbone=backbone, task=TASK)
        return scores(run, found, TASK)

    return arm
