"""The channel that changes nothing: every array travels as it lies in memory, flags as bits."""

import functools
from dataclasses import dataclass

import jax

from fedjax_fm.channels.buffers import Codes, is_bool, pack, static
from fedjax_fm.channels.payload import payload_bits
from fedjax_fm.channels.vectors import is_rows
from fedjax_fm.types import Channel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flags:
    """A bool leaf on the wire."""

    codes: Codes
    shape: tuple[int, ...] = static()


@functools.cache
def identity() -> Channel:
    """Lossless (unbiased, omega = 0); 8 * itemsize bits an entry, 1 for bool leaves (whole bytes a leaf), the rows
    that travel for `Rows`."""

    def encode(state, tree, key):
        flags = lambda x: not is_rows(x) and is_bool(x) and x.size > 0
        return jax.tree.map(
            lambda x: Flags(pack(x.reshape(-1), 2), x.shape) if flags(x) else x, tree, is_leaf=is_rows
        ), state

    def decode(payload):
        is_flags = lambda node: isinstance(node, Flags)
        unpacked = lambda x: x.codes.unpack().astype(bool).reshape(x.shape) if is_flags(x) else x
        return jax.tree.map(unpacked, payload, is_leaf=is_flags)

    return Channel(init=lambda shapes: (), encode=encode, decode=decode, bits=payload_bits)
