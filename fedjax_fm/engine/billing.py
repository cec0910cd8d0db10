"""What travels is billed: the parts of a message, bytes of payloads, sums of bytes.

Bytes that shapes tell are counted on the host; bytes that the data decide are counted
in the round, client by client.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.channels.identity import identity
from fedjax_fm.types import Channel, Rows, Tree, Unbilled

# The parts of a message


def _is_part(node: Any) -> bool:
    return isinstance(node, Unbilled | Rows)


def _is_unbilled(node: Any) -> bool:
    return isinstance(node, Unbilled)


def billed(message: Tree) -> list[Any]:
    """The leaves that are not `Unbilled`, in order; a `Rows` stays in one piece."""
    parts = jax.tree.leaves(message, is_leaf=_is_part)
    return [part for part in parts if not _is_unbilled(part)]


def with_billed(message: Tree, received: Sequence[Any]) -> Tree:
    """The message with what the wire made of its billed parts."""
    parts, structure = jax.tree.flatten(message, is_leaf=_is_part)
    arriving = iter(received)
    whole = [part if _is_unbilled(part) else next(arriving) for part in parts]
    return jax.tree.unflatten(structure, whole)


def unwrapped(message: Tree) -> Tree:
    """The message as a client reads it, `Unbilled` marks taken off."""

    def value(node: Any) -> Any:
        return node.value if _is_unbilled(node) else node

    return jax.tree.map(value, message, is_leaf=_is_unbilled)


# Channels


class EmptyPayload(NamedTuple):
    """The payload of a message without leaves."""

    tree: Tree


def unless_empty(channel: Channel) -> Channel:
    """The channel, but a message without leaves takes no bits and keeps no state.

    Args:
      channel: what is done to all other messages.
    """
    if channel == identity():
        return channel

    def is_empty(tree: Tree) -> bool:
        return not jax.tree.leaves(tree)

    def init(shapes):
        return () if is_empty(shapes) else channel.init(shapes)

    def encode(state, tree, key):
        if is_empty(tree):
            return EmptyPayload(tree), state
        return channel.encode(state, tree, key)

    def decode(payload):
        if isinstance(payload, EmptyPayload):
            return payload.tree
        return channel.decode(payload)

    def bits(payload):
        return 0 if isinstance(payload, EmptyPayload) else channel.bits(payload)

    return Channel(init=init, encode=encode, decode=decode, bits=bits)


# Bytes


def limbs(n: jax.Array) -> jax.Array:
    """u32[] -> u32[3] in base 2048.

    Sums of them over two million clients do not wrap, where sums of bytes would.
    """
    n = jnp.asarray(n).astype(jnp.uint32)
    return jnp.stack([n & 2047, (n >> 11) & 2047, n >> 22])


def of_limbs(sums: Any) -> Any:
    """The number, i64[...], of which [..., 3] are the summed limbs; on the host."""
    return np.asarray(sums, np.int64) @ np.array([1, 1 << 11, 1 << 22])


def counted_bytes(bits: int | jax.Array) -> jax.Array | tuple:
    """What one payload adds to the bytes that a round counts.

    Args:
      bits: from `Channel.bits`.

    Returns:
      Limbs of the bytes, or () where shapes tell them beforehand.
    """
    return () if isinstance(bits, int) else limbs((bits + 7) // 8)


def payload_bytes(channel: Channel, shapes: Tree) -> tuple[int, bool]:
    """Bytes of a message of these shapes.

    Args:
      channel: what encodes it.
      shapes: of the message.

    Returns:
      (bytes, whether they are exact): at most that many where the data decide.
    """
    is_exact = True

    def encoded(tree, key):
        nonlocal is_exact
        payload, _ = channel.encode(channel.init(shapes), tree, key)
        is_exact = isinstance(channel.bits(payload), int)
        return payload

    payload = jax.eval_shape(encoded, shapes, jax.random.key(0))
    if not is_exact:
        return trees.nbytes(payload), False
    return math.ceil(channel.bits(payload) / 8), True


class Bill(NamedTuple):
    """Bytes that one client pays in one exchange, as far as shapes tell them."""

    up: int  # the length of the packed buffers, or at most that
    down: int
    up_is_exact: bool  # False: the data decide, each round counts
    down_is_exact: bool
    times: int  # passages in a round
    by_everyone: bool  # False: the exchange selects some of the clients

    @property
    def is_exact(self) -> bool:
        """Whether shapes tell what every client of a cohort pays."""
        return self.up_is_exact and self.down_is_exact and self.by_everyone


def bytes_per_client(bills: Sequence[Bill]) -> tuple[int, int]:
    """(uplink, downlink) bytes, at most, of a client that takes part in all exchanges."""
    up = sum(bill.up * bill.times for bill in bills)
    down = sum(bill.down * bill.times for bill in bills)
    return up, down


def total_bytes(bills: Sequence[Bill], counts: dict[str, np.ndarray]) -> dict[str, Any]:
    """The metrics `uplink_bytes` and `downlink_bytes`, i64[rounds].

    Args:
      bills: one an exchange.
      counts: per round and exchange, clients that were sent the message (`started`) and
        whose upload arrived (`arrived`), i32[rounds, exchanges], and limbs of the bytes
        that the data decided (`uplink`, `downlink`), u32[rounds, exchanges, 3].
    """
    up = np.array([b.up if b.up_is_exact else 0 for b in bills], np.int64)
    down = np.array([b.down if b.down_is_exact else 0 for b in bills], np.int64)
    counted_up = of_limbs(counts["uplink"]).sum(-1)
    counted_down = of_limbs(counts["downlink"]).sum(-1)
    return {
        "uplink_bytes": counts["arrived"] @ up + counted_up,
        "downlink_bytes": counts["started"] @ down + counted_down,
    }


def in_units(n: int) -> str:
    """1234567 -> '1.2 MB'."""
    value, unit = float(n), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{n} B" if unit == "B" else f"{value:.1f} {unit}"
