"""What methods share whose server keeps one mask: who is sent what, and trains what.

What the mask leaves out is zero and is not sent. The arrays keep their shapes: masked,
not faster.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm.algorithms.averaging import Averaging
from fedjax_fm.algorithms.local import LocalTraining
from fedjax_fm.algorithms.parts import in_f32
from fedjax_fm.channels.payload import sent_if
from fedjax_fm.sparsity import masked, pack_kept, pack_masks
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Exchange, Reduce, Tree, Unbilled

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


def first_state(
    average: Averaging, delta: Tree, masks: Flat, own: Any = ()
) -> PrunedState:
    """The server's state before the first round.

    Args:
      average: whose server optimizer it is.
      delta: w.
      masks: of the first round.
      own: what the method's rule keeps.
    """
    return PrunedState(
        delta=delta,
        masks=masks,
        version=jnp.int32(0),
        round=jnp.int32(0),
        optimizer=average.optimizer.init(in_f32(delta)),
        own=own,
    )


def kept_exchange(
    average: Averaging,
    *,
    client: Callable,
    server: Callable,
    reduce: Reduce,
    address: Callable | None = None,
) -> Exchange:
    """The exchange in which the kept entries travel, both ways.

    Args:
      average: says how clients walk their data.
      client: `Exchange.client`.
      server: `Exchange.server`.
      reduce: of the uploads.
      address: `Exchange.address`; None: `sent_masks`, of clients whose state is the
        version that they hold.
    """
    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=reduce,
        batches=average.local.batches,
        address=address or sent_masks,
        same_entries=False,  # but those that a mask keeps
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


def sent_masks(message: Message, held: jax.Array, client: jax.Array) -> Message:
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


def stepped(average: Averaging, state: PrunedState, mean: Tree) -> PrunedState:
    """The state after the server's step on the kept entries.

    Args:
      average: whose server optimizer it is.
      state: of the round.
      mean: the mean update, start - end.
    """
    updates, moments = average.optimizer.update(
        mean, state.optimizer, in_f32(state.delta)
    )
    delta = optax.apply_updates(state.delta, masked(updates, state.masks))
    return state._replace(delta=delta, optimizer=moments, round=state.round + 1)


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
