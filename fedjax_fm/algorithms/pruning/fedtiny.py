"""FedTiny, progressive pruning: Distributed Pruning Towards Tiny Neural Networks.

Huang, Zhang, Sun, Fang, Yuan, Wu, 2022, arXiv 2212.01977. The density of
every layer stays; which entries are kept changes:

    client:  local steps on the kept entries;  sends those of w - w_k
             every so many rounds, of the layers of one block, the last block first:
             the a_l gradients of pruned entries that are largest
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k)), on the kept entries
             the a_l pruned entries of the largest mean gradient come back, at 0;
             the a_l kept entries of the smallest |w| go
    a_l = share (1 + cos(pi t / stop)) n_l,  n_l entries kept, t rounds
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.averaging import Averaging, averaging
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.parts import Stream, in_f32, stream
from fedjax_fm.algorithms.passes import gradient_over
from fedjax_fm.algorithms.pruning import parts
from fedjax_fm.algorithms.pruning.fedtiny_exchange import (
    grown_and_dropped,
    largest_of_pruned,
    spread,
)
from fedjax_fm.algorithms.pruning.fedtiny_plan import (
    LayerPlan,
    checked_masks,
    plans_of,
)
from fedjax_fm.algorithms.pruning.parts import Message, PrunedState
from fedjax_fm.algorithms.reduce import mean_of, total
from fedjax_fm.sparsity import densities, masked, pack_kept, unpack_kept
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.sparsity.schedules import Schedule, cosine_share
from fedjax_fm.types import Algorithm, ClientOutput, Exchange, Task, Tree


class Upload(NamedTuple):
    """What goes up."""

    kept: Tree  # `Rows` of the kept entries of w - w_k
    gradients: dict[str, Any]  # of pruned entries, when masks are to change


class _FedTiny(NamedTuple):
    """The hyper-parameters of `fedtiny`, checked."""

    average: Averaging
    masks: dict[str, np.ndarray]
    plans: dict[str, LayerPlan]
    schedule: Schedule
    every: int
    stop: int
    n_blocks: int

    def is_due(self, round_index: jax.Array) -> jax.Array:
        """Whether a round ends with other masks."""
        done = round_index + 1
        return (done % self.every == 0) & (done <= self.stop)

    def counts(self, round_index: jax.Array) -> dict[str, jax.Array]:
        """i32[] by path: a_l in a round, 0 for the layers of other blocks."""
        done = round_index + 1
        turn = done // self.every - 1
        block = self.n_blocks - 1 - turn % self.n_blocks
        share = self.schedule(done)

        def one(plan):
            count = jnp.floor(share * plan.kept + 0.5).astype(jnp.int32)
            count = jnp.minimum(count, plan.most)
            return jnp.where(plan.block == block, count, 0)

        return {name: one(plan) for name, plan in self.plans.items()}


def fedtiny(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    masks: Flat,
    every: int = 10,
    stop: int = 100,
    share: float = 0.15,
    blocks: Sequence[str] | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Sparse averaging whose masks move, block by block, at a constant density.

    The second stage of FedTiny; `fedtiny_selection` is the first and finds `masks`. The
    gradient is that of one batch at the trained weights, and only its largest entries
    are sent. Masked, not faster: pruned entries are zeros in arrays of the old shape.

    Sends: the kept entries of the pruned leaves and all others, both ways; down the
    mask, a bit an entry, to a client whose mask is not the present one, the first time
    too; up, in every `every`-th round, a_l gradients of 32 bits and their places of
    ceil(log2 n) bits, for the leaves of one block; an uplink that rounds is refused, as
    it would round places.

    Metrics: `density` and `density PATH`, which stay; `moved`, how many entries the
    round exchanged for others.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round.
      server_optimizer: applied to the mean of (start - end); None means
        `optax.sgd(1.0)`.
      masks: bool by the dotted paths of the pruned leaves, concrete; each leaf is a
        layer.
      every: rounds between moves.
      stop: round from which on the masks stay, at least `every`.
      share: half of the share of a layer's kept entries that the first move exchanges,
        0 < share <= 0.5.
      blocks: regular expressions, in the order of the forward pass, each the masks'
        leaves of one block; None: every leaf by itself, in the order of `masks`.
      weighted: whether clients count by their examples; False: all the same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `PrunedState`; a client's state is i32[], the
      version of the masks that it holds.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a leaf
        that no block or several of them name; later, masks that fit no leaf.

    References:
      Huang et al. 2022, arXiv 2212.01977, progressive pruning.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2, {}
      >>> masks = {"": jnp.array([[True, True, False, False]])}
      >>> how = {"masks": masks, "every": 1, "stop": 4, "share": 0.5}
      >>> how |= {"local_steps": 1, "batch_size": 1}
      >>> method = fedtiny(Task(loss), optax.sgd(1.0), **how)
      >>> x = jnp.array([[[4.0, 1.0, 3.0, 2.0]]])
      >>> population = ffm.Population.from_clients([{"x": x}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros((1, 4))), 3)
      >>> state.delta.tolist(), metrics["moved"].tolist()
      ([[4.0, 0.0, 3.0, 0.0]], [2.0, 1.0, 0.0])
    """
    average = averaging(
        task,
        client_optimizer,
        server_optimizer,
        weighted=weighted,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.whole("every", every, least=1)
    checks.whole("stop", stop, least=every)
    checks.real("share", share, above=0, most=0.5)
    known = checked_masks(masks)
    method = _FedTiny(
        average=average,
        masks=known,
        plans=plans_of(known, blocks, share),
        schedule=cosine_share(share, stop),
        every=every,
        stop=stop,
        n_blocks=len(known) if blocks is None else len(blocks),
    )
    exchange = Exchange(
        broadcast=parts.broadcast,
        client=partial(_client, method),
        server=partial(_server, method),
        reduce=total(partial(_lift, method)),
        batches=average.local.batches,
        address=parts.address,
        same_entries=False,  # but those that a mask keeps
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        client_init=lambda delta, key: jnp.int32(parts.NO_MASKS),
    )


def _init(method: _FedTiny, delta, key, setting) -> PrunedState:
    """The masks that the first stage found."""
    leaves = {trees.path_of(path): x for path, x in jax.tree.leaves_with_path(delta)}
    for name, mask in method.masks.items():
        if name not in leaves or leaves[name].shape != mask.shape:
            raise ValueError(
                f"masks[{name!r}] of shape {list(mask.shape)} fits no leaf of "
                f"{trees.described(delta, 8)}"
            )
    masks = {name: jnp.asarray(mask) for name, mask in method.masks.items()}
    return PrunedState(
        delta=masked(delta, masks),
        masks=masks,
        version=jnp.int32(0),
        round=jnp.int32(0),
        optimizer=method.average.optimizer.init(in_f32(delta)),
    )


def _client(method: _FedTiny, backbone: Tree, message: Message):
    """Trains the kept entries; looks at the gradients of the others when it is time."""
    masks = message.masks
    start = unpack_kept(message.kept, masks)
    local = parts.within(method.average.local, masks)

    def one(own, held, data, key):
        end, metrics = local.run(start, backbone, data, key)
        counts = method.counts(data.round)
        is_due = method.is_due(data.round) & (data.n_steps > 0)
        counts = {name: jnp.where(is_due, n, 0) for name, n in counts.items()}

        def gradient():
            own_key = stream(key, Stream.WHOLE_PASS)
            once = {"n_batches": jnp.int32(1)}
            found, _ = gradient_over(local.task, end, backbone, data, own_key, **once)
            return found

        # The round is the same for all clients: a condition that `vmap` leaves one.
        gradients = jax.lax.cond(
            method.is_due(data.round),
            gradient,
            lambda: jax.tree.map(jnp.zeros_like, end),
        )
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


def _lift(method: _FedTiny, server: PrunedState, sent: Upload, weight: jax.Array):
    """(weighted update, weighted gradients of pruned entries, weight)."""
    update = unpack_kept(sent.kept, server.masks)
    gradients = {
        name: spread(found, method.plans[name])
        for name, found in sent.gradients.items()
    }
    weighted = jax.tree.map(lambda x: weight * x, (update, gradients))
    return *weighted, jnp.asarray(weight, jnp.float32)


def _server(method: _FedTiny, state: PrunedState, aggregate, key):
    """The step on the kept entries, then, when it is time, the exchange of entries."""
    summed, gradients, weight = aggregate.value
    mean = mean_of(summed, weight)
    updates, moments = method.average.optimizer.update(
        mean, state.optimizer, in_f32(state.delta)
    )
    delta = optax.apply_updates(state.delta, masked(updates, state.masks))
    weights = {trees.path_of(p): x for p, x in jax.tree.leaves_with_path(delta)}
    is_due = method.is_due(state.round) & (weight > 0)
    masks, moved = {}, jnp.int32(0)
    for name, count in method.counts(state.round).items():
        n = jnp.where(is_due, count, 0)
        given = (weights[name], state.masks[name], gradients[name])
        masks[name] = grown_and_dropped(*given, n)
        moved += n
    after = state._replace(
        delta=masked(delta, masks),
        masks=masks,
        round=state.round + 1,
        optimizer=moments,
    )
    metrics = {**densities(state.masks), "moved": moved.astype(jnp.float32)}
    return parts.with_version(state, after), metrics
