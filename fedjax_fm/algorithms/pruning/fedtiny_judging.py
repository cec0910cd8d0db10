"""FedTiny's selection: statistics of the candidates, their losses, and the choice.

Huang et al. 2022, arXiv 2212.01977, adaptive batch normalisation selection.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.local import over_steps, passes_over
from fedjax_fm.algorithms.losses import weights_of
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.passes import loss_over
from fedjax_fm.algorithms.pruning.fedtiny_candidates import (
    Candidates,
    candidate_masks,
)
from fedjax_fm.algorithms.reduce import mean_of
from fedjax_fm.sparsity import Layers, masked, put, unpack_kept
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import ClientData, ClientOutput, Task, Tree

# `(delta, backbone, batch, key) -> ` tree of f32[B, ...]
Statistics = Callable[[Tree, Tree, dict[str, jax.Array], Any], Tree]
# `(delta, backbone, statistics) -> (delta, backbone)`
WithStatistics = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


class SelectionState(NamedTuple):
    """Server state.

    Attributes:
      delta: the pretrained model, dense.
      masks: bool[C, ...] by the dotted path of a pruned leaf.
      statistics: leaves [C, ...], the means over clients; the pretrained model's at
        first.
      losses: f32[C], the mean losses; zeros at first.
      chosen: i32[], which of the C it is.
    """

    delta: Tree
    masks: Flat
    statistics: Tree
    losses: jax.Array
    chosen: jax.Array

    def chosen_masks(self) -> Flat:
        """The masks for `fedtiny(masks=...)`."""
        return {name: mask[self.chosen] for name, mask in self.masks.items()}


class Selection(NamedTuple):
    """The hyper-parameters of `fedtiny_selection`, checked."""

    task: Task
    layers: Layers
    density: float
    candidates: int
    spread: float
    initial: Tree
    statistics: Statistics
    with_statistics: WithStatistics

    def model(self, delta, backbone, masks, statistics) -> tuple[Tree, Tree]:
        """A candidate as it is evaluated.

        Args:
          delta: the pretrained model.
          backbone: what is frozen.
          masks: the candidate's.
          statistics: the candidate's.
        """
        return self.with_statistics(masked(delta, masks), backbone, statistics)


def first_round(
    method: Selection, delta: Tree, key: jax.Array, setting: Any
) -> SelectionState:
    """`Algorithm.init`: the candidates, drawn once.

    Args:
      method: the hyper-parameters.
      delta: the pretrained model.
      key: of the draws.
      setting: not read.
    """
    weights = method.layers.weights(delta)
    n = method.candidates
    how = {"spread": method.spread, "layers": method.layers}

    def of_each(x):
        x = jnp.asarray(x, jnp.float32)
        return jnp.broadcast_to(x, (n, *x.shape))

    return SelectionState(
        delta=delta,
        masks=candidate_masks(weights, method.density, n, key, **how),
        statistics=jax.tree.map(of_each, method.initial),
        losses=jnp.zeros(n),
        chosen=jnp.int32(0),
    )


def measured(method: Selection, backbone: Tree, message: Candidates):
    """`Exchange.client`: the statistics of a client's data in each candidate.

    Args:
      method: the hyper-parameters.
      backbone: what is frozen.
      message: all candidates.
    """
    masks, like = message.masks
    kept = unpack_kept(message.kept, masks)

    def one(own, state, data, key):
        def of_candidate(weights):
            delta = put(like, {**weights, **own.others})
            return _mean_statistics(method, delta, backbone, data, key)

        means, weight = jax.vmap(of_candidate)(kept)
        _check_form(method, means)
        return ClientOutput(upload=means, weight=weight[0], state=state)

    return one


def _check_form(method: Selection, means: Tree) -> None:
    """Refuses statistics that are not those of the pretrained model."""
    found = jax.tree.map(lambda x: x[0], means)
    expected = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), method.initial)
    if problem := trees.difference(expected, found):
        raise ValueError(f"initial and statistics are of different forms: {problem}")


def _mean_statistics(
    method: Selection, delta: Tree, backbone: Tree, data: ClientData, key: jax.Array
) -> tuple[Tree, jax.Array]:
    """(the mean over a client's examples, their weight)."""
    own = stream(key, Stream.BESIDE_STEPS)

    def step(i, nothing):
        batch, mask = data.batch(i)
        step_key = jax.random.fold_in(own, i)
        found = method.statistics(delta, backbone, batch, step_key)
        weights = weights_of(method.task, batch, mask)

        def total(x):
            shape = (-1, *[1] * (x.ndim - 1))
            real = jnp.where(mask.reshape(shape), x, 0)
            return jnp.sum(weights.reshape(shape) * real, axis=0, dtype=jnp.float32)

        return nothing, (jax.tree.map(total, found), jnp.sum(weights))

    shapes = jax.eval_shape(lambda: step(jnp.int32(0), ())[1])
    once = data._replace(n_steps=passes_over(data))
    total, weight = over_steps(once, step, (), shapes)[1]
    return mean_of(total, weight), weight


def with_means(state: SelectionState, aggregate: Any, key: jax.Array):
    """`Exchange.server`: the mean statistics of each candidate.

    Args:
      state: of the round.
      aggregate: the means.
      key: not read.
    """
    return state._replace(statistics=aggregate.value), {}


def judged(method: Selection, backbone: Tree, message: Any):
    """`Exchange.client`: the loss of each candidate with the mean statistics.

    Args:
      method: the hyper-parameters.
      backbone: what is frozen.
      message: the statistics; what clients hold by now, unbilled.
    """

    def one(own, state, data, key):
        statistics, (delta, masks) = own

        def of_candidate(masks, statistics):
            model = method.model(delta, backbone, masks, statistics)
            found = loss_over(method.task, *model, data, key)
            return found["loss"]

        sums, weights = jax.vmap(of_candidate)(masks, statistics)
        weight = weights[0]
        return ClientOutput(
            upload=mean_of(sums, weight),
            weight=weight,
            state=state,
            metrics={"loss": (jnp.mean(sums), weight)},
        )

    return one


def with_choice(state: SelectionState, aggregate: Any, key: jax.Array):
    """`Exchange.server`: the candidate of the lowest mean loss; of equal ones the first.

    Args:
      state: of the round.
      aggregate: the mean losses.
      key: not read.
    """
    losses = aggregate.value
    chosen = jnp.argmin(losses).astype(jnp.int32)
    metrics = {
        "best_loss": jnp.min(losses),
        "worst_loss": jnp.max(losses),
        "chosen": chosen.astype(jnp.float32),
    }
    return state._replace(losses=losses, chosen=chosen), metrics
