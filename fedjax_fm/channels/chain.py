"""Channels in a row: each next one encodes the values that the one before it would send."""

import dataclasses

import jax

from fedjax_fm.channels.anchored import Anchored
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.channels.identity import identity
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.types import Channel

BARE = "bare"  # form of the wrapper around what a channel sends without a Payload of its own
CHAIN = "chain"


def chain(*channels: Channel) -> Channel:
    """`chain(top_k(0.01), quantize(4))` selects, then quantises what was selected.

    Positions travel as they are.

    Only channels whose payload still has float values can be followed by another one.
    Chains of chains are chains. Unbiased if all are; errors of a contraction and then
    an unbiased channel of variance omega: 1 - delta' = (1 - delta) + omega delta at
    most for selections (the error of the second falls on what is kept). Bits: those of
    the positions, seeds and scales of all, and of the values of the last.
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
        if not isinstance(
            payload, Payload
        ):  # of a channel that knows no chains: `decode` is told by the wrapper
            payload = Payload(payload, (), BARE)
        if isinstance(payload.values, Anchored) or not jax.tree.leaves(payload.values):
            name = _name(payload)
            raise ValueError(
                f"chain: a channel that leaves no values to encode, here {name}, must come last"
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
        # The values lie on top, so that a chain can itself be followed by another channel.
        return Payload(inner.values, (_hollow(outer), _hollow(inner)), CHAIN), (
            first_state,
            rest_state,
        )

    def decode(payload):
        if not isinstance(payload, Payload) or payload.form != CHAIN:
            raise ValueError(
                "chain cannot read a payload of another channel, "
                f"{getattr(payload, 'form', payload)}"
            )
        outer, inner = payload.side
        return first.decode(_filled(outer, rest.decode(_filled(inner, payload.values))))

    return Channel(init=init, encode=encode, decode=decode, bits=payload_bits)


def _name(payload: Payload) -> str:
    """Of the channel that wrote last."""
    if isinstance(payload.values, Anchored):
        return "anchored"
    if payload.form == CHAIN:
        return _name(payload.side[1])
    return str(payload.form[0] if isinstance(payload.form, tuple) else payload.form)


def _hollow(payload: Payload) -> Payload:
    return dataclasses.replace(payload, values=())


def _filled(payload: Payload, values):
    return (
        values if payload.form == BARE else dataclasses.replace(payload, values=values)
    )
