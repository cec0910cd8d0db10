"""FedTiny's rounds: which entries clients report, and which come and go.

Huang et al. 2022, arXiv 2212.01977, progressive pruning.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.algorithms.averaging import Averaging
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.passes import gradient_over
from fedjax_fm.algorithms.pruning import parts
from fedjax_fm.algorithms.pruning.fedtiny_exchange import (
    grown_and_dropped,
    largest_of_pruned,
    spread,
)
from fedjax_fm.algorithms.pruning.fedtiny_plan import LayerPlan
from fedjax_fm.algorithms.pruning.parts import Message, PrunedState
from fedjax_fm.algorithms.reduce import mean_of
from fedjax_fm.sparsity import densities, masked, pack_kept, unpack_kept
from fedjax_fm.sparsity.schedules import Schedule
from fedjax_fm.types import ClientOutput, Tree


class Upload(NamedTuple):
    """What goes up."""

    kept: Tree  # `Rows` of the kept entries of w - w_k
    gradients: dict[str, Any]  # of pruned entries, when masks are to change


class FedTiny(NamedTuple):
    """The hyper-parameters of `fedtiny`, checked."""

    average: Averaging
    masks: dict[str, np.ndarray]
    plans: dict[str, LayerPlan]
    schedule: Schedule
    every: int
    stop: int
    n_blocks: int

    def is_due(self, round_index: jax.Array) -> jax.Array:
        """Whether a round ends with other masks.

        Args:
          round_index: i32[], from 0.
        """
        done = round_index + 1
        return (done % self.every == 0) & (done <= self.stop)

    def counts(self, round_index: jax.Array) -> dict[str, jax.Array]:
        """i32[] by path: a_l in a round, 0 for the layers of other blocks.

        Args:
          round_index: i32[], from 0.
        """
        done = round_index + 1
        turn = done // self.every - 1
        block = self.n_blocks - 1 - turn % self.n_blocks
        share = self.schedule(done)

        def one(plan):
            count = jnp.floor(share * plan.kept + 0.5).astype(jnp.int32)
            count = jnp.minimum(count, plan.most)
            return jnp.where(plan.block == block, count, 0)

        return {name: one(plan) for name, plan in self.plans.items()}


def first_round(method: FedTiny, delta: Tree, key: Any, setting: Any) -> PrunedState:
    """`Algorithm.init`: with the masks that the first stage found.

    Args:
      method: the hyper-parameters.
      delta: w.
      key: not read.
      setting: not read.

    Raises:
      ValueError: masks that fit no leaf.
    """
    leaves = {trees.path_of(path): x for path, x in jax.tree.leaves_with_path(delta)}
    for name, mask in method.masks.items():
        if name not in leaves or leaves[name].shape != mask.shape:
            raise ValueError(
                f"masks[{name!r}] of shape {list(mask.shape)} fits no leaf of "
                f"{trees.described(delta, 8)}"
            )
    masks = {name: jnp.asarray(mask) for name, mask in method.masks.items()}
    return parts.first_state(method.average, masked(delta, masks), masks)


def client(method: FedTiny, backbone: Tree, message: Message):
    """`Exchange.client`: trains what is kept; when it is time, looks at the others.

    Args:
      method: the hyper-parameters.
      backbone: what is frozen.
      message: of the server.
    """
    masks = message.masks
    start = unpack_kept(message.kept, masks)
    local = parts.within(method.average.local, masks)

    def one(own, held, data, key):
        end, metrics = local.run(start, backbone, data, key)
        counts = method.counts(data.round)
        is_due = method.is_due(data.round) & (data.n_steps > 0)
        counts = {name: jnp.where(is_due, n, 0) for name, n in counts.items()}

        gradients = _gradients(method, end, backbone, data, key)
        flat = {trees.path_of(p): x for p, x in jax.tree.leaves_with_path(gradients)}
        largest = {
            name: largest_of_pruned(flat[name], masks[name], counts[name], plan)
            for name, plan in method.plans.items()
        }
        return ClientOutput(
            upload=Upload(pack_kept(trees.subtract(start, end), masks), largest),
            weight=method.average.weight(data),
            state=own.version,
            metrics=metrics,
        )

    return one


def _gradients(method: FedTiny, end: Tree, backbone: Tree, data, key) -> Tree:
    """Those of one batch at the trained weights, in the rounds that need them."""

    def gradient():
        own_key = stream(key, Stream.WHOLE_PASS)
        once = {"n_batches": jnp.int32(1)}
        task = method.average.local.task
        found, _ = gradient_over(task, end, backbone, data, own_key, **once)
        return found

    # The round is the same for all clients: a condition that `vmap` leaves one.
    is_due = method.is_due(data.round)
    zeros = jax.tree.map(jnp.zeros_like, end)
    return jax.lax.cond(is_due, gradient, lambda: zeros)


def lift(method: FedTiny, server: PrunedState, sent: Upload, weight: jax.Array):
    """`Reduce.lift`: (weighted update, weighted gradients of pruned entries, weight).

    Args:
      method: the hyper-parameters.
      server: its state.
      sent: by the client.
      weight: f32[], the client's.
    """
    update = unpack_kept(sent.kept, server.masks)
    gradients = {
        name: spread(found, method.plans[name])
        for name, found in sent.gradients.items()
    }
    weighted = jax.tree.map(lambda x: weight * x, (update, gradients))
    return *weighted, jnp.asarray(weight, jnp.float32)


def server(method: FedTiny, state: PrunedState, aggregate, key):
    """`Exchange.server`: the step; then, when it is time, the exchange of entries.

    Args:
      method: the hyper-parameters.
      state: of the round.
      aggregate: sums over the cohort.
      key: not read.
    """
    summed, gradients, weight = aggregate.value
    after = parts.stepped(method.average, state, mean_of(summed, weight))
    weights = {trees.path_of(p): x for p, x in jax.tree.leaves_with_path(after.delta)}
    is_due = method.is_due(state.round) & (weight > 0)
    masks, moved = {}, jnp.int32(0)
    for name, count in method.counts(state.round).items():
        n = jnp.where(is_due, count, 0)
        given = (weights[name], state.masks[name], gradients[name])
        masks[name] = grown_and_dropped(*given, n)
        moved += n
    after = after._replace(delta=masked(after.delta, masks), masks=masks)
    metrics = {**densities(state.masks), "moved": moved.astype(jnp.float32)}
    return parts.with_version(state, after), metrics
