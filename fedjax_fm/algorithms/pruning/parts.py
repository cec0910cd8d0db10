"""A round in which everybody trains the entries that one mask keeps.

    server:  sends the kept entries of w, and the mask to those who do not hold it
    client:  w_k <- w;  local steps on the kept entries;  sends those of w - w_k
    server:  w <- server_optimizer(w, sum_k p_k (w - w_k)), on the kept entries
             a method's rule makes the mask of the next round

What is not kept is zero and is not sent. The arrays keep their shapes: masked, not
faster.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import trees
from fedjax_fm.algorithms.averaging import Averaging
from fedjax_fm.algorithms.local import LocalTraining
from fedjax_fm.algorithms.parts import in_f32
from fedjax_fm.algorithms.reduce import mean_of, total
from fedjax_fm.channels.payload import sent_if
from fedjax_fm.sparsity import (
    Layers,
    densities,
    masked,
    pack_kept,
    pack_masks,
    unpack_kept,
)
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Reduce,
    Setting,
    Tree,
    Unbilled,
)

NO_MASKS = -1  # the version that a client holds who was never sent masks


class PrunedState(NamedTuple):
    """Server state.

    Attributes:
      delta: w, zero where it is pruned.
      masks: bool by the dotted path of a pruned leaf.
      version: i32[], masks made before this one.
      round: i32[], rounds that are done.
      optimizer: the server optimizer's state.
      own: what the method's rule keeps.
    """

    delta: Tree
    masks: Flat
    version: jax.Array
    round: jax.Array
    optimizer: Any
    own: Any = ()


class Message(NamedTuple):
    """What one client is sent."""

    kept: Tree  # `Rows` of the kept entries
    bits: Any  # the masks, for those who do not hold them
    masks: Any  # the same as arrays, unbilled
    version: Any  # i32[], unbilled


class Rule(NamedTuple):
    """What makes the masks.

    Attributes:
      first: `(weights by path) -> masks` of the first round.
      next: `(state after the server's step, key) -> state` with the masks, and the
        delta, of the next round.
      own: `(delta) -> ` what the rule keeps at first.
      are_known: whether everybody knows the first masks, as those that keep all.
    """

    first: Callable[[Flat], Flat]
    next: Callable[[PrunedState, jax.Array], PrunedState]
    own: Callable[[Tree], Any]
    are_known: bool


def nothing(delta: Tree) -> tuple:
    """The `own` of rules that keep nothing.

    Args:
      delta: not read.
    """
    return ()


def pruned_averaging(average: Averaging, layers: Layers, rule: Rule) -> Algorithm:
    """The method whose masks a rule makes.

    Args:
      average: local training, weights and the server's step.
      layers: which leaves are pruned.
      rule: makes the masks.

    Returns:
      An algorithm whose server state is `PrunedState`; a client's state is i32[], the
      version of the masks that it holds.
    """
    first = 0 if rule.are_known else NO_MASKS
    exchange = Exchange(
        broadcast=broadcast,
        client=partial(_client, average),
        server=partial(_server, average, rule),
        reduce=mean_kept(),
        batches=average.local.batches,
        address=address,
        same_entries=False,  # but those that a mask keeps
    )
    return Algorithm(
        init=partial(_init, average, layers, rule),
        exchanges=(exchange,),
        client_init=lambda delta, key: jnp.int32(first),
    )


def _init(
    average: Averaging,
    layers: Layers,
    rule: Rule,
    delta: Tree,
    key: jax.Array,
    setting: Setting,
) -> PrunedState:
    """The first masks, and the delta behind them."""
    masks = rule.first(layers.weights(delta))
    return PrunedState(
        delta=masked(delta, masks),
        masks=masks,
        version=jnp.int32(0),
        round=jnp.int32(0),
        optimizer=average.optimizer.init(in_f32(delta)),
        own=rule.own(delta),
    )


def broadcast(state: PrunedState) -> Message:
    """`Exchange.broadcast`: all that `address` reads.

    Args:
      state: of the server.
    """
    return Message(
        kept=pack_kept(state.delta, state.masks),
        bits=pack_masks(state.masks),
        masks=Unbilled(state.masks),
        version=Unbilled(state.version),
    )


def address(message: Message, held: jax.Array, client: jax.Array) -> Message:
    """`Exchange.address`: the masks for those only who do not hold them.

    Args:
      message: of `broadcast`.
      held: i32[], the version that the client holds.
      client: i32[], its number.
    """
    bits = sent_if(held != message.version, message.bits)
    return message._replace(
        bits=bits,
        masks=Unbilled(message.masks),
        version=Unbilled(message.version),
    )


def within(local: LocalTraining, masks: Flat) -> LocalTraining:
    """Local training that leaves pruned entries as they are.

    Args:
      local: of all entries.
      masks: bool by path.

    Returns:
      One whose optimizer is given no gradient of them, and whose steps there are zero.
    """

    def kept(optimizer):
        def update(updates, state, params=None):
            gradients = masked(updates, masks)
            steps, moments = optimizer.update(gradients, state, params)
            return masked(steps, masks), moments

        return optax.GradientTransformation(optimizer.init, update)

    return local.with_optimizer(kept)


def _client(average: Averaging, backbone: Tree, message: Message):
    """Trains the kept entries, decoded once for all clients."""
    masks = message.masks
    start = unpack_kept(message.kept, masks)
    local = within(average.local, masks)

    def one(own, held, data, key):
        trained, metrics = local.run(start, backbone, data, key)
        return ClientOutput(
            upload=pack_kept(trees.subtract(start, trained), masks),
            weight=average.weight(data),
            state=own.version,
            metrics=metrics,
        )

    return one


def mean_kept() -> Reduce:
    """The mean, by weights, of uploads that were packed with the server's masks."""

    def lift(server, sent, weight):
        update = unpack_kept(sent, server.masks)
        weighted = jax.tree.map(lambda x: weight * x, update)
        return weighted, jnp.asarray(weight, jnp.float32)

    def finish(found, setting):
        return mean_of(*found)

    return total(lift)._replace(finish=finish)


def _server(average: Averaging, rule: Rule, state: PrunedState, aggregate, key):
    """The step on the kept entries, then the masks of the next round."""
    updates, moments = average.optimizer.update(
        aggregate.value, state.optimizer, in_f32(state.delta)
    )
    delta = optax.apply_updates(state.delta, masked(updates, state.masks))
    stepped = state._replace(delta=delta, optimizer=moments, round=state.round + 1)
    return with_version(state, rule.next(stepped, key)), densities(state.masks)


def with_version(before: PrunedState, after: PrunedState) -> PrunedState:
    """The state after a rule, its masks numbered anew if they differ.

    Args:
      before: of the round.
      after: of the next one.
    """
    # By name: a compiled function sorts the names of a dict.
    changes = [
        jnp.any(mask != before.masks[name]) for name, mask in after.masks.items()
    ]
    changed = jnp.any(jnp.stack(changes))
    return after._replace(version=before.version + changed.astype(jnp.int32))
