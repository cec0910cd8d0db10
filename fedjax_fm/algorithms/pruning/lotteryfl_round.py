"""LotteryFL's round: what travels, and the mean over those who keep an entry.

Li, Sun, Wang, Duan, Li, Chen, Li, 2020, arXiv 2008.03371, and the authors' code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.compressed import counts_once
from fedjax_fm.algorithms.pruning.lotteryfl_ticket import (
    LotteryFL,
    Ticket,
    may_prune,
    smaller,
)
from fedjax_fm.algorithms.pruning.parts import within
from fedjax_fm.channels.payload import sent_if
from fedjax_fm.sparsity import masked, pack_kept, pack_masks, unpack_kept
from fedjax_fm.types import ClientOutput, Tree, Unbilled


class LotteryFLState(NamedTuple):
    """Server state.

    Attributes:
      delta: w.
      start: w_0, which everybody knows.
    """

    delta: Tree
    start: Tree


class Message(NamedTuple):
    """What a client is sent."""

    kept: Tree  # w, of which `address` leaves what the client's own mask keeps
    start: Any  # w_0, unbilled


class Upload(NamedTuple):
    """What goes up."""

    kept: Tree  # `Rows` of the kept entries of w_k
    bits: Any  # m_k, after a pruning only
    masks: Any  # the same as arrays, which the server knows by then; unbilled


def address(message: Message, own: Ticket, client: jax.Array) -> Message:
    """`Exchange.address`: what the client's mask keeps.

    Args:
      message: of the server.
      own: the client's ticket.
      client: i32[], its number.
    """
    kept = pack_kept(message.kept, own.masks)
    return Message(kept, Unbilled(message.start))


def client(method: LotteryFL, backbone: Tree, message: Message):
    """`Exchange.client`: prunes if it may, and trains what is left.

    Args:
      method: the hyper-parameters.
      backbone: what is frozen.
      message: of the server.
    """

    def one(own, ticket, data, key):
        start = unpack_kept(own.kept, ticket.masks)
        prunes = may_prune(method, start, backbone, ticket, data, key=key)
        masks = smaller(method, start, ticket)
        masks = trees.select(prunes, masks, ticket.masks)
        start = trees.select(prunes, masked(own.start, masks), start)
        local = within(method.local, masks)
        end, metrics = local.run(start, backbone, data, key)
        one = jnp.float32(1)
        kept = jnp.stack([jnp.sum(mask) for mask in masks.values()])
        share = jnp.sum(kept) / trees.size(masks)
        return ClientOutput(
            upload=Upload(
                kept=pack_kept(end, masks),
                bits=sent_if(prunes, pack_masks(masks)),
                masks=Unbilled(masks),
            ),
            weight=counts_once(data),
            state=Ticket(masks, ticket.level + prunes.astype(jnp.int32)),
            metrics={
                **metrics,
                "density": (share, one),
                "pruned": (prunes.astype(jnp.float32), one),
            },
        )

    return one


def lift(server: LotteryFLState, sent: Upload, weight: jax.Array) -> Any:
    """`Reduce.lift`: (w_k on its mask, how many keep each entry).

    Args:
      server: its state.
      sent: by the client.
      weight: f32[], the client's.
    """
    masks = sent.masks.value
    trained = unpack_kept(sent.kept, masks)
    held = masked(jax.tree.map(jnp.ones_like, trained), masks)

    def weighted(x):
        return weight * x

    return jax.tree.map(weighted, trained), jax.tree.map(weighted, held)


def server(state: LotteryFLState, aggregate: Any, key: jax.Array):
    """`Exchange.server`: the mean over those who keep an entry; else the old value.

    Args:
      state: of the round.
      aggregate: sums over the cohort.
      key: not read.
    """
    summed, held = aggregate.value

    def one(old, summed, held):
        mean = summed / jnp.maximum(held, 1)
        return jnp.where(held > 0, mean, old).astype(old.dtype)

    delta = jax.tree.map(one, state.delta, summed, held)
    return state._replace(delta=delta), {}
