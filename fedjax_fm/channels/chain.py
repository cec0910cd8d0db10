"""Channels in a row: each encodes the values that the one before it would send."""

import dataclasses

import jax

from fedjax_fm.channels.anchored import Anchored
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.channels.identity import identity
from fedjax_fm.channels.laws import in_a_row
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.types import Channel

# Form of the wrapper around what a channel sends without a `Payload` of its own.
BARE = "bare"
CHAIN = "chain"


def chain(*channels: Channel) -> Channel:
    """Applies channels in a row, each to the values that the one before it would send.

    `chain(top_k(0.01), quantize(4))` selects, then quantises what was selected; the
    positions travel as they are. Only the last channel may leave no float values to
    encode. Chains of chains are chains.

    Unbiased if all are. A selection with delta, then an unbiased channel of variance
    omega, has at most

        E ||C(x) - x||^2 <= (1 - delta + omega delta) ||x||^2,

    since the error of the second falls on what is kept. Bits: those of the positions,
    seeds and scales of all channels, and of the values of the last.

    Args:
      *channels: in the order in which a sender applies them, at least one.

    Returns:
      A channel whose state holds those of its parts.

    Raises:
      TypeError: a part that is no channel.
      ValueError: no channel; at the first message, a part before the last that leaves
        no values to encode.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.chain(channels.top_k(0.5), channels.int_blocks(bits=4))
      >>> tree = {"w": jnp.array([1.0, -7.0, 2.0, 0.5])}
      >>> payload, _ = channel.encode(channel.init(tree), tree, jax.random.key(0))
      >>> channel.decode(payload)["w"].tolist()
      [0.0, -7.0, 2.0, 0.0]
      >>> channel.bits(payload)  # a bitmap in one byte, two codes, a scale
      48
    """
    if not channels:
        raise ValueError("chain needs at least one channel, got none")
    for channel in channels:
        checked_channel("chain", channel)
    first, *others = channels
    if not others:
        return first
    if first is identity():  # else its packed flags would be values to encode
        return chain(*others)
    rest = chain(*others)

    def encode_first(state, tree, key):
        payload, state = first.encode(state, tree, key)
        if not isinstance(payload, Payload):
            # Of a channel without `Payload`s: the wrapper tells `decode`.
            payload = Payload(payload, (), BARE)
        if isinstance(payload.values, Anchored) or not jax.tree.leaves(payload.values):
            raise ValueError(
                "chain: a channel that leaves no values to encode, here "
                f"{_name(payload)}, must come last"
            )
        return payload, state

    def init(shapes):
        state = first.init(shapes)
        payload, _ = jax.eval_shape(encode_first, state, shapes, jax.random.key(0))
        return state, rest.init(payload.values)

    def encode(state, tree, key):
        first_key, rest_key = jax.random.split(key)
        outer, first_state = encode_first(state[0], tree, first_key)
        inner, rest_state = rest.encode(state[1], outer.values, rest_key)
        if not isinstance(inner, Payload):
            inner = Payload(inner, (), BARE)
        # The values lie on top: a chain can itself be followed by another channel.
        side = _hollow(outer), _hollow(inner)
        return Payload(inner.values, side, CHAIN), (first_state, rest_state)

    def decode(payload):
        if not isinstance(payload, Payload) or payload.form != CHAIN:
            raise ValueError(
                "chain cannot read a payload of another channel, "
                f"{getattr(payload, 'form', payload)}"
            )
        outer, inner = payload.side
        values = rest.decode(_filled(inner, payload.values))
        return first.decode(_filled(outer, values))

    law = in_a_row(first.law, rest.law)
    return Channel(init=init, encode=encode, decode=decode, bits=payload_bits, law=law)


def _name(payload: Payload) -> str:
    """The name of the channel that wrote last."""
    if isinstance(payload.values, Anchored):
        return "anchored"
    if payload.form == CHAIN:
        return _name(payload.side[1])
    return str(payload.form[0] if isinstance(payload.form, tuple) else payload.form)


def _hollow(payload: Payload) -> Payload:
    """A payload without its values."""
    return dataclasses.replace(payload, values=())


def _filled(payload: Payload, values):
    """The inverse of `_hollow`, as the channel that wrote the payload reads it."""
    if payload.form == BARE:
        return values
    return dataclasses.replace(payload, values=values)
