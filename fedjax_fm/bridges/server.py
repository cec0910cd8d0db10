"""The server's half of a round.

What the simulator does in one program is cut where the wire is: `run_round` makes
requests and takes replies, `client.answer` makes a reply of a request. Random numbers
have the simulator's names, so that the result is the simulator's, up to the order of
float sums.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.bridges.client import Same, Upload, known_structures
from fedjax_fm.bridges.federation import (
    Federation,
    Reply,
    Request,
    Send,
    ServerState,
    sampler_of,
)
from fedjax_fm.bridges.messages import leaves_of, message_of, received_of
from fedjax_fm.engine.billing import billed
from fedjax_fm.engine.guarantee import check_sampling
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.types import Aggregate, Exchange, Stack, Tree


def start(federation: Federation) -> ServerState:
    """The server before the first round.

    Args:
      federation: what is agreed on.

    Returns:
      Its state.

    Raises:
      ValueError: a method that no bridge carries; a private one that was accounted for
        with another sampler.
    """
    exchanges, (_, downlink) = federation.exchanges, federation.channels
    sampler = sampler_of(federation)
    check_sampling(federation.algorithm, sampler, federation.setting)
    key = jax.random.key(federation.seed)
    init_key = derive(key, Purpose.INIT)
    server = federation.algorithm.init(federation.delta, init_key, federation.setting)
    downlinks = tuple(
        downlink.init(jax.eval_shape(lambda s, e=e: billed(e.broadcast(s)), server))
        for e in exchanges
    )
    first = sampler.init()
    return ServerState(server=server, downlinks=downlinks, sampler=first, round=0)


def run_round(
    federation: Federation, state: ServerState, send: Send
) -> tuple[ServerState, dict[str, float]]:
    """One round.

    Args:
      federation: what is agreed on.
      state: of the server.
      send: carries requests to clients, and returns one reply of each; it raises where
        a client does not answer.

    Returns:
      (state, metrics): the method's and the clients', `clients`, and the bytes of what is
      billed, as of `Simulator.run`.

    Raises:
      RuntimeError: a reply is missing, or nobody has examples.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> from fedjax_fm.bridges import Federation, answer, first_states
      >>> def loss(w, backbone, batch, key):
      ...     return (w - batch["x"]) ** 2 / 2, {}
      >>> method = ffm.fedavg(
      ...     ffm.Task(loss), optax.sgd(0.5), local_steps=1, batch_size=2
      ... )
      >>> federation = Federation(
      ...     method,
      ...     delta=jnp.float32(0),
      ...     n_clients=2,
      ...     cohort_size=2,
      ...     columns={"x": jax.ShapeDtypeStruct((), jnp.float32)},
      ...     n_max=2,
      ... )
      >>> examples = [{"x": np.float32([0.0, 2.0])}, {"x": np.float32([3.0])}]
      >>> states = [first_states(federation, k) for k in range(2)]
      >>> def send(requests):  # in one process, in the place of a wire
      ...     found = [
      ...         answer(federation, r, examples[r.client], states[r.client])
      ...         for r in requests
      ...     ]
      ...     return [reply for reply, _ in found]
      >>> state, metrics = run_round(federation, start(federation), send)
      >>> round(float(state.server.delta), 4)  # (2 * 0.5 + 1 * 1.5) / 3
      0.8333
    """
    key, sampler = federation.key(state.round), sampler_of(federation)
    cohort_key = derive(key, Purpose.COHORT)
    ids, n_active, drawn = sampler.draw(state.sampler, cohort_key)
    cohort = [int(k) for k in np.asarray(ids)[: int(n_active)]]
    server, downlinks, sums = state.server, list(state.downlinks), {}
    bytes_up = bytes_down = 0
    for index, exchange in enumerate(federation.exchanges):
        packed, downlinks[index], down = _packed_message(
            federation, exchange, index, server, downlinks[index], key
        )
        wanted = _wanted(exchange, index, packed, cohort, key)
        arrays = leaves_of(packed.wire)
        requests = [
            Request(client=k, round=state.round, exchange=index, arrays=arrays)
            for k in wanted
        ]
        replies = {reply.client: reply for reply in send(requests)}
        if missing := [k for k in wanted if k not in replies]:
            raise RuntimeError(f"no reply of client {missing[0]} was handed on")
        came = [replies[k] for k in wanted if replies[k].arrays]
        uploads = [_upload(federation, index, reply) for reply in came]
        aggregate, up = _reduced(federation, exchange, server, came, uploads)
        server_key = derive(key, Purpose.SERVER, index)
        server, gauges = exchange.server(server, aggregate, server_key)
        bytes_up, bytes_down = bytes_up + up, bytes_down + down * len(wanted)
        _add(sums, [upload.metrics for upload in uploads], gauges)
    metrics = {
        name: total / count if count else np.nan
        for name, (total, count) in sums.items()
    }
    metrics |= {"uplink_bytes": bytes_up, "downlink_bytes": bytes_down}
    metrics["clients"] = len(came)
    after = ServerState(
        server=server,
        downlinks=tuple(downlinks),
        sampler=drawn,
        round=state.round + 1,
    )
    return after, metrics


class _Packed(NamedTuple):
    """A message on its way."""

    wire: Any  # (payload, parts that both sides could have known)
    received: Tree  # as a client reads it


def _packed_message(
    federation: Federation,
    exchange: Exchange,
    index: int,
    server: Any,
    state: Any,
    key: jax.Array,
) -> tuple[_Packed, Any, int]:
    """(message, the channel's next state, bytes that are billed of it)."""
    own = derive(key, Purpose.DOWNLINK, index)
    payload, known, state = message_of(federation, exchange, server, state, own)
    wire = (payload, known)
    received = received_of(federation, exchange, trees.shapes(server), wire)
    n_bits = int(federation.channels[1].bits(payload))
    return _Packed(wire, received), state, (n_bits + 7) // 8


def _wanted(
    exchange: Exchange, index: int, packed: _Packed, cohort: list[int], key: jax.Array
) -> list[int]:
    """Whom of the cohort the exchange is for."""
    if exchange.selects is None:
        return cohort
    return [
        k
        for k in cohort
        if exchange.selects(
            packed.received, jnp.int32(k), derive(key, Purpose.SELECT, k, index)
        )
    ]


def _upload(federation: Federation, index: int, reply: Reply) -> Upload:
    structure = known_structures(Same(federation), index)
    return jax.tree.unflatten(structure.upload, reply.arrays)


def _reduced(
    federation: Federation,
    exchange: Exchange,
    server: Any,
    came: Sequence[Reply],
    uploads: Sequence[Upload],
) -> tuple[Aggregate, int]:
    """What the server receives, and the bytes that it is billed."""
    if not uploads:
        raise RuntimeError("no client of the cohort has examples: there is no upload")
    uplink, _ = federation.channels
    reduce, parts, n_bytes = exchange.reduce, [], 0
    for upload in uploads:
        n_bytes += (int(uplink.bits(upload.payload)) + 7) // 8
        sent = uplink.decode(upload.payload)
        parts.append(reduce.lift(server, sent, upload.weight))
    if reduce.keep:
        values = jax.tree.map(lambda *x: jnp.stack(x), *parts)
        ids = jnp.asarray([reply.client for reply in came], jnp.int32)
        total: Any = Stack(values, active=jnp.ones(len(came), bool), ids=ids)
    else:
        total = functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)
    value = reduce.finish(total, federation.setting)
    return Aggregate(value=value, n_clients=jnp.int32(len(uploads))), n_bytes


def _add(sums: dict, parts: Sequence[Mapping], gauges: Mapping) -> None:
    """Adds sums and counts of metrics, and the server's, which count once."""
    rows = [*parts, {name: (value, 1.0) for name, value in gauges.items()}]
    for row in rows:
        for name, (total, count) in row.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + float(total), before[1] + float(count))
