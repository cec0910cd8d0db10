"""Masks: one bit a flag."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.channels.buffers import is_bool, pack
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.channels.vectors import check_array, opened
from fedjax_fm.types import Channel


def bernoulli_mask() -> Channel:
    """Bool leaves, and no others, as one string of bits. Lossless.

    Bits: 1 a flag, in whole bytes for the message. An arithmetic coder, which
    `code_lengths` runs on the host, reaches d H2(p) + 2 and 32 for p, the share of
    ones.

    References:
      Isik et al., FedPM, 2022, arXiv 2209.15328, section 3.
    """

    def encode(state, tree, key):
        paths, structure = jax.tree.flatten_with_path(tree)
        if not paths:
            raise ValueError(
                "bernoulli_mask: the message has no leaves, there is nothing to send"
            )
        for path, leaf in paths:
            name = trees.path_of(path) or "the leaf"
            check_array("bernoulli_mask", name, leaf)
            if not is_bool(leaf):
                raise TypeError(
                    f"bernoulli_mask carries bool leaves only, but {name} is {leaf.dtype}"
                )
            if leaf.size == 0:
                raise ValueError(
                    f"bernoulli_mask: the leaf {name} of shape {leaf.shape} is empty"
                )
        leaves = [leaf for _, leaf in paths]
        shapes: Hashable = tuple(leaf.shape for leaf in leaves)
        codes = pack(jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), 2)
        return Payload((), (codes,), ("bernoulli_mask", (), (structure, shapes))), state

    def decode(payload):
        structure, shapes = opened(payload, "bernoulli_mask", ())
        flags, leaves, start = payload.side[0].unpack().astype(bool), [], 0
        for shape in shapes:
            size = jax.ShapeDtypeStruct(shape, bool).size
            leaves.append(flags[start : start + size].reshape(shape))
            start += size
        return jax.tree.unflatten(structure, leaves)

    return Channel(
        init=lambda shapes: (), encode=encode, decode=decode, bits=payload_bits
    )
