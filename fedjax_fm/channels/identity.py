"""The channel that changes nothing: every array travels as it lies in memory, flags as bits."""

import functools
from dataclasses import dataclass

import jax

from fedjax_fm import trees
from fedjax_fm.channels.buffers import Codes, is_bool, pack, static
from fedjax_fm.channels.payload import payload_bits
from fedjax_fm.channels.vectors import check_array, is_rows
from fedjax_fm.types import Channel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flags:
    """A bool leaf on the wire."""

    codes: Codes
    shape: tuple[int, ...] = static()


def _sent(path, leaf):
    if is_rows(leaf):
        return leaf
    check_array("identity", trees.path_of(path) or "the leaf", leaf)
    return (
        Flags(pack(leaf.reshape(-1), 2), leaf.shape)
        if is_bool(leaf) and leaf.size > 0
        else leaf
    )


def _received(part):
    return (
        part.codes.unpack().astype(bool).reshape(part.shape)
        if isinstance(part, Flags)
        else part
    )


@functools.cache
def identity() -> Channel:
    """Lossless (unbiased, omega = 0).

    8 * itemsize bits an entry, 1 for bool leaves (whole bytes a leaf), the rows that
    travel for `Rows`.
    """

    def encode(state, tree, key):
        return jax.tree.map_with_path(_sent, tree, is_leaf=is_rows), state

    def decode(payload):
        return jax.tree.map(
            _received, payload, is_leaf=lambda node: isinstance(node, Flags)
        )

    return Channel(
        init=lambda shapes: (), encode=encode, decode=decode, bits=payload_bits
    )
