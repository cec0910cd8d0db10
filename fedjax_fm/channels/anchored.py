"""A downlink in two parts.

An old model that receivers fetch ahead of time, and what has changed since (DoCoFL).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.channels.arguments import checked_channel, checked_whole
from fedjax_fm.channels.vectors import is_rows
from fedjax_fm.types import Channel, Tree, Unbilled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Anchored:
    """One message. It decodes alone: the anchor is part of it.

    Attributes:
      anchor: payload of the anchor, the same in every message until it is renewed.
      correction: payload of x - anchor.
      age: Unbilled(i32[]), messages since the anchor was sent for the first time; 0 when it is new.
    """

    anchor: Any
    correction: Any
    age: Any


class AnchorState(NamedTuple):
    """The server's."""

    anchor: Any  # payload
    age: jax.Array  # i32[], of the next message
    inner: tuple[Any, Any]  # states of the two channels


def anchored(anchor: Channel, correction: Channel, every: int) -> Channel:
    """Sends C_a(y), an old model y, and C_c(x - decode(C_a(y))).

    Y is the model of the last renewal, `every` messages.

    What arrives is anchor + correction: unbiased when the correction is. Error: that of
    the correction, on a vector that is small while the model moves slowly. Bits:
    b_anchor + b_correction, the bill of a receiver that has to fetch the anchor too;
    one that was reached `age` messages ago or later holds it, and `anchored_bits` tells
    the two apart. Identity for both gives x up to rounding.

    Meant for the downlink, whose state is the server's: as an uplink every client would
    keep an anchor.

    Args:
      anchor, correction: channels; leaves that hold no floats travel in both, the
        correction's count.
      every: messages between renewals, at least 1.

    References:
      Dorfman et al., DoCoFL: downlink compression for cross-device federated learning,
      2023, arXiv 2302.00543, algorithm 1.
    """
    checked_channel("anchored, anchor", anchor)
    checked_channel("anchored, correction", correction)
    every = checked_whole("every", every, least=1)

    def init(shapes):
        inner = anchor.init(shapes), correction.init(shapes)
        payload = jax.eval_shape(anchor.encode, inner[0], shapes, jax.random.key(0))[0]
        return AnchorState(
            jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), payload),
            jnp.int32(0),
            inner,
        )

    def encode(state, tree, key):
        anchor_key, correction_key = jax.random.split(key)

        def renew():
            return anchor.encode(state.inner[0], tree, anchor_key)

        held, of_anchor = jax.lax.cond(
            state.age == 0, renew, lambda: (state.anchor, state.inner[0])
        )
        change = jax.tree.map(_change, tree, anchor.decode(held), is_leaf=is_rows)
        payload, of_correction = correction.encode(
            state.inner[1], change, correction_key
        )
        age = jnp.where(state.age + 1 >= every, 0, state.age + 1)
        return Anchored(held, payload, Unbilled(state.age)), AnchorState(
            held, age, (of_anchor, of_correction)
        )

    def decode(payload: Anchored) -> Tree:
        return jax.tree.map(
            _changed,
            anchor.decode(payload.anchor),
            correction.decode(payload.correction),
        )

    def bits(payload: Anchored):
        return anchor.bits(payload.anchor) + correction.bits(payload.correction)

    return Channel(init=init, encode=encode, decode=decode, bits=bits)


def _change(leaf, old):
    if is_rows(leaf):
        raise TypeError(
            "anchored cannot carry `Rows`: which rows travel may differ from those of the anchor"
        )
    return leaf - old if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _changed(old, change):
    return old + change if jnp.issubdtype(change.dtype, jnp.floating) else change


def anchored_bits(
    channels: tuple[Channel, Channel], payload: Anchored
) -> tuple[Any, Any]:
    """(bits of the anchor, ahead of time and once a receiver and renewal.

    Bits of the correction, every message).

    Args:
      channels: the two that `anchored` was made of.
    """
    return channels[0].bits(payload.anchor), channels[1].bits(payload.correction)
