"""Masks of bools, one bit a flag."""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.channels.buffers import is_bool, pack
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.channels.vectors import check_array, opened
from fedjax_fm.types import Channel


def bernoulli_mask() -> Channel:
    """Packs bool leaves, and no others, as one string of bits.

    Lossless. Bits: 1 a flag, in whole bytes for the message. For a share p of ones
    among d flags, an arithmetic coder reaches d H2(p) + 2 bits, and 32 for p;
    `code_lengths` runs one on the host.

    Returns:
      A channel without state.

    Raises:
      TypeError: at the first message, a leaf that is not bool.
      ValueError: at the first message, an empty leaf or none.

    References:
      Isik et al., FedPM, 2022, arXiv 2209.15328, section 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.bernoulli_mask()
      >>> mask = {"w": jnp.array([True, False, True])}
      >>> payload, _ = channel.encode((), mask, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [True, False, True]
      >>> channel.bits(payload)
      8
    """

    def encode(state, tree, key):
        paths, structure = jax.tree.flatten_with_path(tree)
        if not paths:
            raise ValueError(
                "bernoulli_mask: the message has no leaves, there is nothing to send"
            )
        for path, leaf in paths:
            _check_mask(trees.path_of(path) or "the leaf", leaf)
        leaves = [leaf for _, leaf in paths]
        shapes: Hashable = tuple(leaf.shape for leaf in leaves)
        flags = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
        form = ("bernoulli_mask", (), (structure, shapes))
        return Payload((), (pack(flags, 2),), form), state

    def decode(payload):
        structure, shapes = opened(payload, "bernoulli_mask", ())
        flags = payload.side[0].unpack().astype(bool)
        leaves, start = [], 0
        for shape in shapes:
            size = jax.ShapeDtypeStruct(shape, bool).size
            leaves.append(flags[start : start + size].reshape(shape))
            start += size
        return jax.tree.unflatten(structure, leaves)

    return Channel(
        init=lambda shapes: (), encode=encode, decode=decode, bits=payload_bits
    )


def _check_mask(name: str, leaf: Any) -> None:
    """Refuses a leaf that is no array of at least one flag."""
    check_array("bernoulli_mask", name, leaf)
    if not is_bool(leaf):
        raise TypeError(
            f"bernoulli_mask carries bool leaves only, but {name} is {leaf.dtype}"
        )
    if leaf.size == 0:
        raise ValueError(
            f"bernoulli_mask: the leaf {name} of shape {leaf.shape} is empty"
        )
