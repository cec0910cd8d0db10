"""The parts of a message: what is billed, what is free, and what a client reads."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from fedjax_fm.channels.identity import identity
from fedjax_fm.types import Channel, Rows, Tree, Unbilled


def _is_part(node: Any) -> bool:
    return isinstance(node, Unbilled | Rows)


def billed(message: Tree) -> list[Any]:
    """The leaves that are not `Unbilled`, in order; a `Rows` stays in one piece."""
    return [
        part
        for part in jax.tree.leaves(message, is_leaf=_is_part)
        if not isinstance(part, Unbilled)
    ]


def with_billed(message: Tree, received: Sequence[Any]) -> Tree:
    """The message with what the wire made of its billed parts."""
    parts, structure = jax.tree.flatten(message, is_leaf=_is_part)
    coming = iter(received)
    return jax.tree.unflatten(
        structure,
        [part if isinstance(part, Unbilled) else next(coming) for part in parts],
    )


def unwrap(message: Tree) -> Tree:
    """The message as a client reads it, `Unbilled` marks taken off."""

    def is_free(node):
        return isinstance(node, Unbilled)

    return jax.tree.map(
        lambda node: node.value if is_free(node) else node, message, is_leaf=is_free
    )


class Nothing(NamedTuple):
    """The payload of a message without leaves."""

    tree: Tree


def unless_empty(channel: Channel) -> Channel:
    """The channel, but for exchanges that send nothing that way, whatever it makes of
    other messages: no bits, no state.
    """
    if channel == identity():
        return channel

    def is_empty(tree):
        return not jax.tree.leaves(tree)

    return Channel(
        init=lambda shapes: () if is_empty(shapes) else channel.init(shapes),
        encode=lambda state, tree, key: (
            (Nothing(tree), state)
            if is_empty(tree)
            else channel.encode(state, tree, key)
        ),
        decode=lambda payload: (
            payload.tree if isinstance(payload, Nothing) else channel.decode(payload)
        ),
        bits=lambda payload: (
            0 if isinstance(payload, Nothing) else channel.bits(payload)
        ),
    )
