"""The client's half of a round."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks, trees
from fedjax_fm.bridges.federation import Federation, Reply, Request
from fedjax_fm.bridges.messages import leaves_of, message_of, received_of
from fedjax_fm.engine.billing import billed
from fedjax_fm.engine.data import DeviceData, client_data
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.types import Tree


class Upload(NamedTuple):
    """What a client's reply holds."""

    payload: Any
    weight: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]


class Structures(NamedTuple):
    """How arrays become trees again."""

    wire: Any
    states: Any
    upload: Any


def first_states(federation: Federation, client: int) -> list[np.ndarray]:
    """What a client keeps before its first round.

    Args:
      federation: what is agreed on.
      client: its id.

    Returns:
      Arrays: the method's, and of each exchange the uplink's.
    """
    return leaves_of(_first_states(federation, client))


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
    structure = known_structures(Same(federation), request.exchange)
    wire = jax.tree.unflatten(structure.wire, request.arrays)
    kept = jax.tree.unflatten(structure.states, list(states))
    key = jax.random.key_data(federation.key(request.round))
    arrays = {name: jnp.asarray(examples[name]) for name in federation.columns}
    numbers = (jnp.int32(request.client), jnp.int32(request.round))
    work = _compiled(Same(federation), request.exchange)
    upload, kept = work(federation.backbone, wire, kept, arrays, numbers, key)
    return Reply(request.client, leaves_of(upload)), leaves_of(kept)


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
    payload, known, _ = message_of(federation, exchange, server, state, key)
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
    message = received_of(federation, exchange, server, wire)
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


class Same:
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
def _compiled(same: Same, index: int) -> Callable:
    """A client's work in an exchange, compiled once for each number of examples."""
    return jax.jit(functools.partial(_work, same.federation, index))


@functools.lru_cache(maxsize=32)
def known_structures(same: Same, index: int) -> Structures:
    """How the arrays of an exchange become trees, worked out once.

    Args:
      same: the federation.
      index: of the exchange.
    """
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
) -> tuple[Upload, Any]:
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
    upload = Upload(payload, jnp.float32(output.weight), metrics)
    return upload, (after, (*uplinks[:index], mine, *uplinks[index + 1 :]))


def _structures(federation: Federation, index: int) -> Structures:
    """The trees of a message, of a client's states and of an upload."""
    wire, arrays, numbers, key = jax.eval_shape(
        functools.partial(_arguments, federation, index)
    )
    states = jax.eval_shape(functools.partial(_first_states, federation, 0))
    work = functools.partial(_work, federation, index)
    upload, _ = jax.eval_shape(
        work, trees.shapes(federation.backbone), wire, states, arrays, numbers, key
    )
    return Structures(*map(jax.tree.structure, (wire, states, upload)))


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
