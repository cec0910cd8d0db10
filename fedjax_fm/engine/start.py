"""What the shapes of the trainable tree decide, and the state before the first round."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.messages import Messages, trace_messages
from fedjax_fm.engine.parts import Engine, RoundState
from fedjax_fm.engine.store import HostStore
from fedjax_fm.types import Sampler, Tree


class Start(NamedTuple):
    """Known before the first round."""

    delta: Tree  # by shape
    messages: Messages
    # (delta, client id) -> states of a client that never took part, as a
    # `jax.tree_util.Partial`
    first_rows: Any
    rows: Tree  # what it gives, by shape
    bytes_of_states: int  # of all clients
    server: Any  # the server's state, by shape


def with_key(start: Start, key: jax.Array) -> Start:
    """The same for another seed: `first_rows` draws from another key, and costs no compile."""
    return start._replace(first_rows=jax.tree_util.Partial(start.first_rows.func, key))


@functools.cache
def _all_first_rows(sharding: Any) -> Any:
    """`(first_rows, delta, ids i32[N]) -> states [N, ...]`, compiled once for all seeds."""

    def make(first_rows: Any, delta: Tree, ids: jax.Array) -> Tree:
        return jax.vmap(functools.partial(first_rows, delta))(ids)

    return jax.jit(make, out_shardings=sharding)


def start_of(
    engine: Engine, backbone: Tree, data: Any, delta: Tree, key: jax.Array
) -> Start:
    """Traces one client of every exchange; nothing is computed.

    `backbone`, `data` and `delta` may be shapes.
    """
    delta, backbone, data = trees.shapes((delta, backbone, data))
    server = jax.eval_shape(
        lambda d: engine.algorithm.init(d, derive(key, Purpose.INIT), engine.setting),
        delta,
    )
    client = jax.eval_shape(lambda d: engine.algorithm.client_init(d, key), delta)
    messages = trace_messages(engine, backbone, data, server, client, key)
    first_rows = jax.tree_util.Partial(
        functools.partial(_first_rows, engine, messages), key
    )
    rows = jax.eval_shape(first_rows, delta, jnp.int32(0))
    return Start(
        delta=delta,
        messages=messages,
        first_rows=first_rows,
        rows=rows,
        bytes_of_states=engine.setting.n_clients * trees.nbytes(rows),
        server=server,
    )


def _first_rows(
    engine: Engine, messages: Messages, key: jax.Array, delta: Tree, client: jax.Array
) -> tuple:
    """(the algorithm's state, per exchange the uplink's) of a client before its first round."""
    mine = engine.algorithm.client_init(delta, derive(key, Purpose.CLIENT_INIT, client))
    return mine, tuple(engine.uplink.init(upload) for upload in messages.uploads)


def first_state(
    engine: Engine,
    sampler: Sampler,
    start: Start,
    delta: Tree,
    key: jax.Array,
    spills: bool,
) -> RoundState:
    """The state of round 0, before it is placed on devices.

    Works under `jit` and `vmap`, unless it spills.
    """
    n_clients = engine.setting.n_clients
    if spills:
        clients, uplinks = HostStore.empty(start.rows, n_clients, delta), ()
    elif jax.tree.leaves(start.rows):
        n_rows = n_clients + (
            -n_clients % engine.plan.n_devices if engine.shares_states else 0
        )  # as many on each device
        make = _all_first_rows(engine.state_sharding)
        clients, uplinks = make(start.first_rows, delta, jnp.arange(n_rows))
    else:
        clients, uplinks = start.rows
    return RoundState(
        server=engine.algorithm.init(delta, derive(key, Purpose.INIT), engine.setting),
        clients=clients,
        uplinks=uplinks,
        downlinks=tuple(
            engine.downlink.init(message) for message in start.messages.broadcasts
        ),
        sampler=sampler.init(),
        round=jnp.int32(0),
    )
