"""The channel that changes nothing: arrays travel as they are, flags as bits."""

import functools
from dataclasses import dataclass

import jax

from fedjax_fm import trees
from fedjax_fm.channels.buffers import Codes, is_bool, pack, static
from fedjax_fm.channels.laws import Unbiased, constant
from fedjax_fm.channels.payload import payload_bits
from fedjax_fm.channels.vectors import check_array, is_rows
from fedjax_fm.types import Channel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flags:
    """A bool leaf on the wire."""

    codes: Codes  # its entries in a row, one bit each
    shape: tuple[int, ...] = static()  # of the leaf


def _sent(path, leaf):
    """A leaf on the wire."""
    if is_rows(leaf):
        return leaf
    check_array("identity", trees.path_of(path) or "the leaf", leaf)
    if is_bool(leaf) and leaf.size > 0:
        codes = pack(leaf.reshape(-1), 2)
        return Flags(codes, leaf.shape)
    return leaf


def _received(part):
    """The inverse of `_sent`."""
    if isinstance(part, Flags):
        flags = part.codes.unpack().astype(bool)
        return flags.reshape(part.shape)
    return part


@functools.cache
def identity() -> Channel:
    """Sends every leaf as it is: the channel of a simulator that is given none.

    Lossless. Bits: 8 * itemsize an entry, 1 for bool leaves (whole bytes a leaf); of
    `Rows` the rows that travel.

    Returns:
      A channel without state, the same object at every call.

    Raises:
      TypeError: at a message, a leaf that is no array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.identity()
      >>> tree = {"w": jnp.ones(3), "mask": jnp.array([True, False])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.bits(payload)  # 3 * 32, and a byte
      104
    """

    def encode(state, tree, key):
        return jax.tree.map_with_path(_sent, tree, is_leaf=is_rows), state

    def decode(payload):
        return jax.tree.map(
            _received, payload, is_leaf=lambda node: isinstance(node, Flags)
        )

    return Channel(
        init=lambda shapes: (),
        encode=encode,
        decode=decode,
        bits=payload_bits,
        law=Unbiased(constant(0)),
    )
