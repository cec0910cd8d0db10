"""The two halves of a round, with nothing but arrays between them.

What the simulator does in one program is cut where the wire is: `run_round` at the server
makes requests and takes replies, `answer` at a client makes a reply of a request. Both
know the `Federation`; random numbers have the simulator's names, so that the result is the
simulator's, up to the order of float sums.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks, trees
from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.billing import billed, unless_empty, unwrapped, with_billed
from fedjax_fm.engine.data import DeviceData, client_data
from fedjax_fm.engine.guarantee import check_sampling
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.population import samplers
from fedjax_fm.types import (
    Aggregate,
    Algorithm,
    Channel,
    Exchange,
    Sampler,
    Setting,
    Stack,
    Tree,
    Unbilled,
)


class Federation(NamedTuple):
    """What server and clients agree on before the first round.

    Attributes:
      algorithm: of exchanges that send everyone the same message.
      delta: the trainable tree at the beginning.
      n_clients: N.
      cohort_size: clients a round.
      columns: {name: shape and dtype of one example}, of `jax.ShapeDtypeStruct`.
      n_max: examples of the largest client.
      backbone: frozen parameters, which every machine has.
      uplink, downlink: channels; None sends arrays as they are.
      sampler: default uniform without replacement.
      seed: names every random number.
    """

    algorithm: Algorithm
    delta: Tree
    n_clients: int
    cohort_size: int
    columns: Mapping[str, jax.ShapeDtypeStruct]
    n_max: int
    backbone: Tree = ()
    uplink: Channel | None = None
    downlink: Channel | None = None
    sampler: Sampler | None = None
    seed: int = 0

    @property
    def setting(self) -> Setting:
        """Sizes that an algorithm may divide by."""
        return Setting(self.n_clients, self.cohort_size)

    @property
    def channels(self) -> tuple[Channel, Channel]:
        """(uplink, downlink)."""
        pair = (self.uplink or identity(), self.downlink or identity())
        return unless_empty(pair[0]), unless_empty(pair[1])

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Of a round.

        Raises:
          ValueError: an exchange that cannot be cut at the wire.
        """
        for exchange in self.algorithm.exchanges:
            if not isinstance(exchange, Exchange):
                raise ValueError(
                    "this method talks many times within a round (`Repeat`), which no "
                    "bridge carries; run it by `Simulator`"
                )
            if exchange.address is not None:
                raise ValueError(
                    "this method sends every client its own part of the model, which it "
                    "works out from what that client keeps; a bridge's server does not "
                    "have that: run it by `Simulator`"
                )
        return self.algorithm.exchanges

    def key(self, round: int) -> jax.Array:
        """The key of a round."""
        return jax.random.fold_in(jax.random.key(self.seed), round)


class Request(NamedTuple):
    """What a client is sent.

    Attributes:
      client: its id.
      round: from 0.
      exchange: of the round, from 0.
      arrays: the message, packed, and what both could have known.
    """

    client: int
    round: int
    exchange: int
    arrays: list[np.ndarray]


class Reply(NamedTuple):
    """What a client sends back.

    Attributes:
      client: its id.
      arrays: the upload, packed, its weight, and sums and counts of metrics; none of a
        client without examples.
    """

    client: int
    arrays: list[np.ndarray]


class ServerState(NamedTuple):
    """What the server keeps from round to round."""

    server: Any
    downlinks: tuple
    sampler: Any
    round: int


Send = Callable[[Sequence[Request]], Sequence[Reply]]


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
    sampler = _sampler_of(federation)
    check_sampling(federation.algorithm, sampler, federation.setting)
    key = jax.random.key(federation.seed)
    init_key = derive(key, Purpose.INIT)
    server = federation.algorithm.init(federation.delta, init_key, federation.setting)
    downlinks = tuple(
        downlink.init(jax.eval_shape(lambda s, e=e: billed(e.broadcast(s)), server))
        for e in exchanges
    )
    return ServerState(server, downlinks, sampler=sampler.init(), round=0)


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
    key, sampler = federation.key(state.round), _sampler_of(federation)
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
        arrays = _leaves(packed.wire)
        requests = [Request(k, state.round, index, arrays) for k in wanted]
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
    after = ServerState(server, tuple(downlinks), sampler=drawn, round=state.round + 1)
    return after, metrics


def first_states(federation: Federation, client: int) -> list[np.ndarray]:
    """What a client keeps before its first round.

    Args:
      federation: what is agreed on.
      client: its id.

    Returns:
      Arrays: the method's, and of each exchange the uplink's.
    """
    return _leaves(_first_states(federation, client))


def answer(
    federation: Federation,
    request: Request,
    examples: Mapping[str, np.ndarray],
    states: Sequence[np.ndarray],
) -> tuple[Reply, list[np.ndarray]]:
    """A client's part of an exchange.

    Args:
      federation: what is agreed on.
      request: from the server.
      examples: {column: [n, ...]} of the client.
      states: from `first_states`, or from its last call.

    Returns:
      (reply, states).

    Raises:
      ValueError: columns that were not agreed on, or more examples than `n_max`.
    """
    n = _check_examples(federation, examples)
    if n == 0:
        return Reply(request.client, []), list(states)
    structure = _known_structures(_Same(federation), request.exchange)
    wire = jax.tree.unflatten(structure.wire, request.arrays)
    kept = jax.tree.unflatten(structure.states, list(states))
    key = jax.random.key_data(federation.key(request.round))
    arrays = {name: jnp.asarray(examples[name]) for name in federation.columns}
    numbers = (jnp.int32(request.client), jnp.int32(request.round))
    work = _compiled(_Same(federation), request.exchange)
    upload, kept = work(federation.backbone, wire, kept, arrays, numbers, key)
    return Reply(request.client, _leaves(upload)), _leaves(kept)


# The server's half


class _Packed(NamedTuple):
    """A message on its way."""

    wire: Any  # (payload, parts that both sides could have known)
    received: Tree  # as a client reads it


def _message_of(
    federation: Federation, exchange: Exchange, server: Any, state: Any, key: jax.Array
) -> tuple[Any, Any, Any]:
    """(payload, unbilled parts, the channel's next state) of a broadcast."""
    message = exchange.broadcast(server)
    _, downlink = federation.channels
    payload, state = downlink.encode(state, billed(message), key)
    return payload, _unbilled(message), state


def _unbilled(message: Tree) -> list[Any]:
    parts = jax.tree.leaves(message, is_leaf=lambda node: isinstance(node, Unbilled))
    return [part.value for part in parts if isinstance(part, Unbilled)]


def _with_unbilled(message: Tree, values: Sequence[Any]) -> Tree:
    """The message with other values in its `Unbilled` parts."""
    waiting = iter(values)

    def one(node):
        return Unbilled(next(waiting)) if isinstance(node, Unbilled) else node

    return jax.tree.map(one, message, is_leaf=lambda node: isinstance(node, Unbilled))


def _received(
    federation: Federation, exchange: Exchange, shapes: Any, wire: Any
) -> Tree:
    """The message as a client reads it, from what has travelled."""
    payload, known = wire
    _, downlink = federation.channels
    message = jax.eval_shape(exchange.broadcast, shapes)
    whole = _with_unbilled(message, known)
    return unwrapped(with_billed(whole, downlink.decode(payload)))


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
    payload, known, state = _message_of(federation, exchange, server, state, own)
    wire = (payload, known)
    received = _received(federation, exchange, trees.shapes(server), wire)
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


class _Upload(NamedTuple):
    """What a client's reply holds."""

    payload: Any
    weight: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]


def _upload(federation: Federation, index: int, reply: Reply) -> _Upload:
    structure = _known_structures(_Same(federation), index)
    return jax.tree.unflatten(structure.upload, reply.arrays)


def _reduced(
    federation: Federation,
    exchange: Exchange,
    server: Any,
    came: Sequence[Reply],
    uploads: Sequence[_Upload],
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


def _sampler_of(federation: Federation) -> Sampler:
    chosen, setting = federation.sampler, federation.setting
    if federation.algorithm.sampler is not None:
        return federation.algorithm.sampler(chosen, setting)
    if chosen is not None:
        return chosen
    return samplers.uniform(setting.n_clients, setting.cohort_size)


# The client's half


class _Structures(NamedTuple):
    """How arrays become trees again."""

    wire: Any
    states: Any
    upload: Any


def _first_states(federation: Federation, client: int) -> Any:
    """(the method's state, of each exchange the uplink's)."""
    key = jax.random.key(federation.seed)
    own_key = derive(key, Purpose.CLIENT_INIT, client)
    own = federation.algorithm.client_init(federation.delta, own_key)
    uplink, _ = federation.channels
    n = range(len(federation.exchanges))
    uploads = [jax.eval_shape(_sent_by(federation, i, own)) for i in n]
    return own, tuple(uplink.init(upload) for upload in uploads)


def _sent_by(federation: Federation, index: int, own: Any) -> Callable[[], Tree]:
    """The upload of an exchange before any channel, to be traced."""

    def traced() -> Tree:
        wire, *rest = _arguments(federation, index)
        output = _output(federation, index, federation.backbone, wire, own, *rest)
        return output.upload

    return traced


def _arguments(federation: Federation, index: int) -> tuple:
    """(wire, arrays, numbers, key data) of any client, zeros."""
    exchange, key = federation.exchanges[index], jax.random.key(federation.seed)
    setting, (_, downlink) = federation.setting, federation.channels
    server = federation.algorithm.init(federation.delta, key, setting)
    state = downlink.init(billed(exchange.broadcast(server)))
    payload, known, _ = _message_of(federation, exchange, server, state, key)
    arrays = {
        name: jnp.zeros((1, *column.shape), column.dtype)
        for name, column in federation.columns.items()
    }
    numbers = (jnp.int32(0), jnp.int32(0))
    return (payload, known), arrays, numbers, jax.random.key_data(key)


def _output(
    federation: Federation,
    index: int,
    backbone: Tree,
    wire: Any,
    own: Any,
    arrays: Mapping[str, jax.Array],
    numbers: tuple[jax.Array, jax.Array],
    key_data: jax.Array,
) -> Any:
    """`ClientOutput` of one client in one exchange."""
    exchange, (client, number) = federation.exchanges[index], numbers
    key = jax.random.wrap_key_data(key_data)
    setting = federation.setting

    def first(delta):
        return federation.algorithm.init(delta, key, setting)

    server = jax.eval_shape(first, federation.delta)
    message = _received(federation, exchange, server, wire)
    n = next(iter(arrays.values())).shape[0]
    view = client_data(
        DeviceData(dict(arrays), jnp.array([0, n], jnp.int32)),
        client=client,
        place=jnp.int32(0),
        active=jnp.bool_(True),
        round_index=number,
        batches=exchange.batches,
        round_key=key,
        n_max=federation.n_max,
    )
    own_key = derive(key, Purpose.CLIENT, client, index)
    return exchange.client(backbone, message)(message, own, view, own_key)


class _Same:
    """A federation as a key of a cache: the same object, as it holds arrays."""

    def __init__(self, federation: Federation):
        self.federation = federation

    def __hash__(self) -> int:
        return id(self.federation.algorithm.exchanges)

    def __eq__(self, other: object) -> bool:
        theirs = getattr(other, "federation", None)
        return theirs is not None and all(
            mine is his for mine, his in zip(self.federation, theirs, strict=True)
        )


@functools.lru_cache(maxsize=32)
def _compiled(same: _Same, index: int) -> Callable:
    """A client's work in an exchange, compiled once for each number of examples."""
    return jax.jit(functools.partial(_work, same.federation, index))


@functools.lru_cache(maxsize=32)
def _known_structures(same: _Same, index: int) -> "_Structures":
    return _structures(same.federation, index)


def _work(
    federation: Federation,
    index: int,
    backbone: Tree,
    wire: Any,
    states: Any,
    arrays: Mapping[str, jax.Array],
    numbers: tuple[jax.Array, jax.Array],
    key_data: jax.Array,
) -> tuple[_Upload, Any]:
    """(what is sent, the client's states)."""
    own, uplinks = states
    output = _output(federation, index, backbone, wire, own, arrays, numbers, key_data)
    uplink, _ = federation.channels
    key = derive(jax.random.wrap_key_data(key_data), Purpose.UPLINK, numbers[0], index)
    payload, mine = uplink.encode(uplinks[index], output.upload, key)
    after = output.state
    if callable(after):
        after = after(uplink.decode(payload))
    metrics = jax.tree.map(jnp.float32, dict(output.metrics))
    upload = _Upload(payload, jnp.float32(output.weight), metrics)
    return upload, (after, (*uplinks[:index], mine, *uplinks[index + 1 :]))


def _structures(federation: Federation, index: int) -> _Structures:
    """The trees of a message, of a client's states and of an upload."""
    wire, arrays, numbers, key = jax.eval_shape(
        functools.partial(_arguments, federation, index)
    )
    states = jax.eval_shape(functools.partial(_first_states, federation, 0))
    work = functools.partial(_work, federation, index)
    upload, _ = jax.eval_shape(
        work, trees.shapes(federation.backbone), wire, states, arrays, numbers, key
    )
    return _Structures(*map(jax.tree.structure, (wire, states, upload)))


def _check_examples(federation: Federation, examples: Mapping[str, np.ndarray]) -> int:
    """How many examples there are, if they are such as were agreed on."""
    if set(examples) != set(federation.columns):
        raise ValueError(
            f"expected the columns {sorted(federation.columns)}, got {sorted(examples)}"
        )
    sizes = {len(column) for column in examples.values()}
    if len(sizes) != 1:
        raise ValueError(f"expected columns of one length, got {sorted(sizes)}")
    (n,) = sizes
    checks.whole("examples of a client", n, least=0, most=federation.n_max)
    for name, column in federation.columns.items():
        found = np.asarray(examples[name])
        if found.shape[1:] != column.shape or found.dtype != column.dtype:
            raise ValueError(
                f"expected {name} as {column.dtype}[n, {list(column.shape)}], got "
                f"{found.dtype}{list(found.shape)}"
            )
    return n


def _leaves(tree: Tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
