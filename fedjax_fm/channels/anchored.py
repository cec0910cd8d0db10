"""DoCoFL's downlink: an old model that receivers fetch early, and a correction."""

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
    """One message; the anchor is part of it, so that it decodes alone.

    Attributes:
      anchor: payload of the anchor, the same in every message until it is renewed.
      correction: payload of x - anchor.
      age: Unbilled(i32[]), messages since the anchor was first sent; 0 when it is new.
    """

    anchor: Any
    correction: Any
    age: Any


class AnchorState(NamedTuple):
    """What the sender keeps between messages."""

    anchor: Any  # payload of the anchor that is in use
    age: jax.Array  # i32[], messages since it was sent, of the next message
    inner: tuple[Any, Any]  # states of the two channels


def anchored(anchor: Channel, correction: Channel, every: int) -> Channel:
    """Sends an old model, renewed every few messages, and the change since then.

        x arrives as  a + decode(C_c(x - a)),  a = decode(C_a(y)),  y an earlier x

    y is the message of the last renewal. What arrives is unbiased when the correction
    is; its error is that of the correction, of a vector that is small while the model
    moves slowly. With `identity` for both, x arrives up to rounding.

    Bits: b_anchor + b_correction, the bill of a receiver that has to fetch the anchor
    as well. A receiver that was reached `age` messages ago or later holds it already;
    `anchored_bits` gives the two numbers apart.

    Meant for the downlink, whose state is the server's. As an uplink, every client
    would have to keep an anchor. Leaves that hold no floats travel in both payloads;
    the receiver uses those of the correction.

    Args:
      anchor: channel of the anchor.
      correction: channel of the difference to the anchor, in every message.
      every: messages between renewals, at least 1.

    Returns:
      A channel whose payload is an `Anchored`.

    Raises:
      TypeError: `anchor` or `correction` is no channel; at the first message, `Rows`
        among the leaves.
      ValueError: `every` is below 1.

    References:
      Dorfman et al., DoCoFL: downlink compression for cross-device federated learning,
      2023, arXiv 2302.00543, algorithm 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> downlink = channels.anchored(channels.cast(), channels.quantize(4), every=10)
      >>> model = {"w": jnp.array([1.0, 2.0])}
      >>> state = downlink.init(model)
      >>> payload, state = downlink.encode(state, model, jax.random.key(0))
      >>> downlink.decode(payload)["w"].tolist()
      [1.0, 2.0]
      >>> downlink.bits(payload), int(payload.age.value), int(state.age)
      (72, 0, 1)
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
        message = Anchored(held, payload, Unbilled(state.age))
        return message, AnchorState(held, age, (of_anchor, of_correction))

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
    """What a leaf adds to the anchor's; leaves without floats are sent again."""
    if is_rows(leaf):
        raise TypeError(
            "anchored cannot carry `Rows`: which rows travel may differ from those "
            "of the anchor"
        )
    return leaf - old if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _changed(old, change):
    """The inverse of `_change`."""
    return old + change if jnp.issubdtype(change.dtype, jnp.floating) else change


def anchored_bits(
    channels: tuple[Channel, Channel], payload: Anchored
) -> tuple[Any, Any]:
    """Bits of an anchored message, anchor and correction apart.

    The anchor is fetched ahead of time, once a receiver and renewal; the correction is
    in every message.

    Args:
      channels: (anchor, correction), the channels that `anchored` was made of.
      payload: one message.

    Returns:
      (bits of the anchor, bits of the correction).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> parts = channels.cast(), channels.quantize(4)
      >>> downlink = channels.anchored(*parts, every=10)
      >>> model = {"w": jnp.array([1.0, 2.0])}
      >>> payload, _ = downlink.encode(downlink.init(model), model, jax.random.key(0))
      >>> channels.anchored_bits(parts, payload)
      (32, 40)
    """
    return channels[0].bits(payload.anchor), channels[1].bits(payload.correction)
