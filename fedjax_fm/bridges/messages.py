"""A message between its packed arrays and what a client reads."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_fm.bridges.federation import Federation
from fedjax_fm.engine.billing import billed, unwrapped, with_billed
from fedjax_fm.types import Exchange, Tree, Unbilled


def message_of(
    federation: Federation, exchange: Exchange, server: Any, state: Any, key: jax.Array
) -> tuple[Any, Any, Any]:
    """A broadcast, packed.

    Args:
      federation: what is agreed on.
      exchange: of the round.
      server: the server's state.
      state: of the downlink's channel.
      key: of the downlink.

    Returns:
      (payload, values of the `Unbilled` parts, the channel's next state).
    """
    message = exchange.broadcast(server)
    _, downlink = federation.channels
    payload, state = downlink.encode(state, billed(message), key)
    return payload, _unbilled(message), state


def _unbilled(message: Tree) -> list[Any]:
    parts = jax.tree.leaves(message, is_leaf=lambda node: isinstance(node, Unbilled))
    return [part.value for part in parts if isinstance(part, Unbilled)]


def _with_unbilled(message: Tree, values: Sequence[Any]) -> Tree:
    """The message with other values in its `Unbilled` parts."""
    waiting = iter(values)

    def one(node):
        return Unbilled(next(waiting)) if isinstance(node, Unbilled) else node

    return jax.tree.map(one, message, is_leaf=lambda node: isinstance(node, Unbilled))


def received_of(
    federation: Federation, exchange: Exchange, shapes: Any, wire: Any
) -> Tree:
    """The message as a client reads it, from what has travelled.

    Args:
      federation: what is agreed on.
      exchange: of the round.
      shapes: of the server's state.
      wire: (payload, values of the `Unbilled` parts).
    """
    payload, known = wire
    _, downlink = federation.channels
    message = jax.eval_shape(exchange.broadcast, shapes)
    whole = _with_unbilled(message, known)
    return unwrapped(with_billed(whole, downlink.decode(payload)))


def leaves_of(tree: Tree) -> list[np.ndarray]:
    """The arrays of a tree, in order, on the host.

    Args:
      tree: of arrays.
    """
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
