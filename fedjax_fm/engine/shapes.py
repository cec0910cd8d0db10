"""What the shapes of the trainable tree decide, before the first round.

One client of every exchange is traced, nothing is computed: what it sends and is sent,
how much of it is billed, and what it keeps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.channels.error_feedback import keeps_residual
from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.billing import Bill, billed, payload_bytes, unwrapped
from fedjax_fm.engine.data import DeviceData, client_data
from fedjax_fm.engine.faults import noted
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.participation import step_limit
from fedjax_fm.engine.parts import BoundExchange, Engine
from fedjax_fm.engine.round import broadcast
from fedjax_fm.engine.state import HostStore, RoundState, all_first_rows
from fedjax_fm.types import ClientOutput, Exchange, Repeat, Sampler, Tree


class Messages(NamedTuple):
    """Shapes and bytes of what travels, one entry per exchange."""

    uploads: list[Tree]
    broadcasts: list[Tree]  # billed parts only
    bills: list[Bill]


class Shapes(NamedTuple):
    """Known before the first round."""

    delta: Tree  # by shape
    messages: Messages
    # (delta, client id) -> states of a client that never took part, as a `Partial`
    first_rows: Any
    rows: Tree  # what it gives, by shape
    bytes_of_states: int  # of all clients
    server: Any  # the server's state, by shape


def shapes_for(
    engine: Engine, backbone: Tree, data: Any, delta: Tree, key: jax.Array
) -> Shapes:
    """Traces one client of every exchange; nothing is computed.

    Args:
      engine: of the run.
      backbone, data, delta: arrays or shapes.
      key: of the run.

    Raises:
      ValueError: a client's next state differs in structure, shape or dtype from the one
        it was given; a downlink channel meets an exchange that sends each client its own
        part.
    """
    delta, backbone, data = trees.shapes((delta, backbone, data))

    def server_of(delta):
        init_key = derive(key, Purpose.INIT)
        return engine.algorithm.init(delta, init_key, engine.setting)

    def client_of(delta):
        return engine.algorithm.client_init(delta, key)

    server = jax.eval_shape(server_of, delta)
    client = jax.eval_shape(client_of, delta)
    messages = _messages(engine, backbone, data, server, client, key)
    make = functools.partial(_first_rows, engine, messages.uploads)
    first_rows = jax.tree_util.Partial(make, key)
    rows = jax.eval_shape(first_rows, delta, jnp.int32(0))
    return Shapes(
        delta=delta,
        messages=messages,
        first_rows=first_rows,
        rows=rows,
        bytes_of_states=engine.setting.n_clients * trees.nbytes(rows),
        server=server,
    )


def with_key(shapes: Shapes, key: jax.Array) -> Shapes:
    """The same for another seed, which costs no compile."""
    first_rows = jax.tree_util.Partial(shapes.first_rows.func, key)
    return shapes._replace(first_rows=first_rows)


def _messages(
    engine: Engine, backbone: Tree, data: DeviceData, server: Any, client: Any, key: Any
) -> Messages:
    """What travels in every exchange; all arguments but the engine and the key by shape."""
    uploads, broadcasts, bills = [], [], []
    times = [n for group in engine.algorithm.exchanges for n in _passages(group)]
    for bound, n in zip(engine.exchanges, times, strict=True):
        message = billed(jax.eval_shape(bound.exchange.broadcast, server))
        traced = _Traced(bound, message, key)
        with noted(f"in the client of exchange {bound.index}"):
            found = jax.eval_shape(traced, backbone, data, server, client)
        upload, addressed, state = found
        _check_exchange(bound, client, state)
        _check_memories(bound, upload, traced.follows)
        uploads.append(upload)
        broadcasts.append(message)
        down = message if addressed is None else addressed
        bills.append(_bill(bound, upload, down, n))
    return Messages(uploads, broadcasts, bills)


def _passages(group: Exchange | Repeat) -> list[int]:
    """How often each exchange of the group happens in a round."""
    if isinstance(group, Repeat):
        return [group.times] * len(group.exchanges)
    return [1]


class _Traced:
    """One client of an exchange, to be traced.

    Args:
      bound: the exchange.
      message: the billed parts of its message, by shape.
      key: any.

    Attributes:
      follows: once it was called, whether the client's next state is a function of what
        the server decodes.
    """

    def __init__(self, bound: BoundExchange, message: Tree, key: jax.Array):
        self.bound, self.message, self.key = bound, message, key
        self.follows = False

    def __call__(self, backbone: Tree, data: Any, server: Any, client: Any) -> tuple:
        """(upload, billed parts of what it was sent by itself or None, next state)."""
        bound, key, zero = self.bound, self.key, jnp.int32(0)
        engine, exchange = bound.engine, bound.exchange
        downlink = engine.downlink.init(self.message)
        sent = broadcast(bound, server, downlink, key)
        view = client_data(
            data,
            client=zero,
            place=zero,
            active=jnp.bool_(True),
            round_index=zero,
            batches=exchange.batches,
            round_key=key,
            n_max=engine.n_max,
            most_steps=step_limit(engine, zero, zero, key),
        )
        own, addressed = sent.message, None
        if exchange.address is not None:
            own = exchange.address(sent.message, client, zero)
            addressed = billed(own)
        work = exchange.client(backbone, sent.message)
        output: ClientOutput = work(unwrapped(own), client, view, key)
        self.follows = callable(output.state)
        state = output.state(output.upload) if self.follows else output.state
        return output.upload, addressed, state


def _check_exchange(bound: BoundExchange, client: Any, state: Any) -> None:
    """Refuses a client state that changes its form, and a channel for parts of messages."""
    if problem := trees.difference(client, state):
        raise ValueError(
            f"exchange {bound.index}: the next state of a client is not like the "
            f"one it was given: {problem}"
        )
    if bound.exchange.address is not None and bound.engine.downlink != identity():
        raise ValueError(
            f"exchange {bound.index} sends every client its own part of the "
            "message: give downlink=None, a downlink channel would encode the whole"
        )


def _check_memories(bound: BoundExchange, upload: Tree, follows: bool) -> None:
    """Refuses a residual beside a client's memory, or for entries that change."""
    is_safe = bound.exchange.same_entries and not follows
    if is_safe or not keeps_residual(bound.engine.uplink, upload):
        return
    if follows:
        raise ValueError(
            f"exchange {bound.index}: the clients of this method keep what has arrived "
            "and send again by themselves what was lost; error feedback would send it "
            "twice, from which they may diverge: give the uplink without error_feedback"
        )
    raise ValueError(
        f"exchange {bound.index}: the entries of an upload are other ones each round; "
        "error feedback would add what one lost to another: give the uplink without "
        "error_feedback"
    )


def _bill(bound: BoundExchange, upload: Tree, message: Tree, times: int) -> Bill:
    """What one client pays, from the shapes of what it sends and is sent."""
    up, up_is_exact = payload_bytes(bound.engine.uplink, upload)
    down, down_is_exact = payload_bytes(bound.engine.downlink, message)
    return Bill(
        up=up,
        down=down,
        up_is_exact=up_is_exact,
        down_is_exact=down_is_exact,
        times=times,
        by_everyone=bound.exchange.selects is None,
    )


def _first_rows(
    engine: Engine, uploads: list[Tree], key: jax.Array, delta: Tree, client: jax.Array
) -> tuple:
    """(the algorithm's state, per exchange the uplink's) of a client before its first round."""
    own = engine.algorithm.client_init(delta, derive(key, Purpose.CLIENT_INIT, client))
    return own, tuple(engine.uplink.init(upload) for upload in uploads)


def first_state(
    engine: Engine,
    sampler: Sampler,
    shapes: Shapes,
    delta: Tree,
    key: jax.Array,
    *,
    spills: bool,
) -> RoundState:
    """The state of round 0, before it is placed on devices.

    Works under `jit` and `vmap`, unless it spills.

    Args:
      engine: of the run.
      sampler: of the run.
      shapes: from `shapes_for`, with the same key.
      delta: the trainable tree.
      key: of the run.
      spills: whether clients' states lie in host memory.
    """
    n_clients = engine.setting.n_clients
    if spills:
        clients, uplinks = HostStore.empty(shapes.rows, n_clients, delta), ()
    elif jax.tree.leaves(shapes.rows):
        # as many rows on each device
        n_devices = engine.plan.n_devices
        more = -n_clients % n_devices if engine.shares_states else 0
        make = all_first_rows(engine.state_sharding)
        ids = jnp.arange(n_clients + more)
        clients, uplinks = make(shapes.first_rows, delta, ids)
    else:
        clients, uplinks = shapes.rows
    init_key = derive(key, Purpose.INIT)
    broadcasts = shapes.messages.broadcasts
    return RoundState(
        server=engine.algorithm.init(delta, init_key, engine.setting),
        clients=clients,
        uplinks=uplinks,
        downlinks=tuple(engine.downlink.init(message) for message in broadcasts),
        sampler=sampler.init(),
        round=jnp.int32(0),
    )
