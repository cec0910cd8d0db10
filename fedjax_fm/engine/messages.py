"""What travels, by shape.

Bytes of one client, and whether clients give back what they were given.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.client import most_steps
from fedjax_fm.engine.data import DeviceData, client_data
from fedjax_fm.engine.errors import told
from fedjax_fm.engine.message import billed, unwrap
from fedjax_fm.engine.parts import Engine
from fedjax_fm.engine.round import broadcast
from fedjax_fm.types import Channel, ClientOutput, Exchange, Repeat, Tree


class Bill(NamedTuple):
    """Bytes that one client pays in one exchange, as far as shapes tell them."""

    up: int  # the length of the packed buffers, or at most that
    down: int
    up_is_exact: bool  # False: the data decide, each round counts
    down_is_exact: bool
    times: int  # passages in a round
    by_everyone: bool  # False: the exchange takes some of the clients


class Messages(NamedTuple):
    """Shapes, one entry per exchange."""

    uploads: list[Tree]
    broadcasts: list[Tree]  # billed parts only
    bills: list[Bill]

    @property
    def bytes_per_client(self) -> tuple[int, int]:
        """(uplink, downlink) at most, of a client that takes part in all exchanges of a round."""
        return sum(b.up * b.times for b in self.bills), sum(
            b.down * b.times for b in self.bills
        )

    @property
    def is_exact(self) -> bool:
        """Whether shapes tell every client's bytes."""
        return all(
            b.up_is_exact and b.down_is_exact and b.by_everyone for b in self.bills
        )


def trace_messages(
    engine: Engine, backbone: Tree, data: DeviceData, server: Any, client: Any, key
) -> Messages:
    """Traces one client of every exchange, without computing anything.

    Args:
      client: shapes of one client's state.

    Raises:
      ValueError: a client's next state differs in structure, shape or dtype from the
        one it was given; a downlink channel meets an exchange that sends each client
        its own part.
    """
    uploads, broadcasts, bills = [], [], []
    times = [t for group in engine.algorithm.exchanges for t in _passages(group)]
    for index, exchange in enumerate(engine.exchanges):
        message = billed(jax.eval_shape(exchange.broadcast, server))
        one = _traced(engine, exchange, message, key)
        with told(f"in the client of exchange {index}"):
            upload, mine, state = jax.eval_shape(one, backbone, data, server, client)
        if problem := trees.difference(client, state):
            raise ValueError(
                f"exchange {index}: the next state of a client is not like the "
                f"one it was given: {problem}"
            )
        if exchange.address is not None and engine.downlink != identity():
            raise ValueError(
                f"exchange {index} sends every client its own part of the "
                "message: give downlink=None, a downlink channel would encode "
                "the whole"
            )
        up, up_is_exact = _payload_bytes(engine.uplink, upload)
        down, down_is_exact = _payload_bytes(
            engine.downlink, message if mine is None else mine
        )
        uploads.append(upload)
        broadcasts.append(message)
        bills.append(
            Bill(
                up=up,
                down=down,
                up_is_exact=up_is_exact,
                down_is_exact=down_is_exact,
                times=times[index],
                by_everyone=exchange.selects is None,
            )
        )
    return Messages(uploads, broadcasts, bills)


def _passages(group: Exchange | Repeat) -> list[int]:
    """How often each exchange of the group happens in a round."""
    return [group.times] * len(group.exchanges) if isinstance(group, Repeat) else [1]


def _traced(
    engine: Engine, exchange: Exchange, billed_message: Tree, key: jax.Array
) -> Callable:
    """`f(backbone, data, server, client state) -> (upload, billed parts of what it was
    sent by itself, next state)`.
    """

    def one(backbone, data, server, client):
        message, *_ = broadcast(
            engine, exchange, server, engine.downlink.init(billed_message), key
        )
        zero, mine = jnp.int32(0), None
        limit = most_steps(engine, zero, zero, key)
        view = client_data(
            data,
            zero,
            zero,
            jnp.bool_(True),
            zero,
            exchange.batches,
            key,
            engine.n_max,
            limit,
        )
        own = message
        if exchange.address is not None:
            own = exchange.address(message, client, zero)
            mine = billed(own)
        output: ClientOutput = exchange.client(backbone, message)(
            unwrap(own), client, view, key
        )
        sent = output.upload
        return (
            sent,
            mine,
            output.state(sent) if callable(output.state) else output.state,
        )

    return one


def _payload_bytes(channel: Channel, shapes: Tree) -> tuple[int, bool]:
    """(bytes, whether they are exact) of a message of these shapes."""
    exact = True

    def encoded(tree, key):
        nonlocal exact
        payload, _ = channel.encode(channel.init(shapes), tree, key)
        exact = isinstance(channel.bits(payload), int)
        return payload

    payload = jax.eval_shape(encoded, shapes, jax.random.key(0))
    return (
        math.ceil(channel.bits(payload) / 8) if exact else trees.nbytes(payload)
    ), exact
