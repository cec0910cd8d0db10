"""The clients of an exchange: one, a block of them, a device's blocks, all devices.

`one_client` is written for one client and knows of no other. `over_cohort` lifts it, by
`vmap` inside a block, a loop over blocks and `shard_map` over devices: the only lifts
there are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm import trees
from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.billing import billed, counted_bytes, unwrapped
from fedjax_fm.engine.data import client_data
from fedjax_fm.engine.devices import CLIENTS, MODEL, by_each_device
from fedjax_fm.engine.faults import fault_of_client, no_fault
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.participation import arrives, step_limit
from fedjax_fm.engine.parts import (
    BoundExchange,
    Engine,
    Result,
    Shared,
    Slots,
    Totals,
)
from fedjax_fm.types import Channel, ClientData, ClientOutput, Tree

# One client


def one_client(bound: BoundExchange, shared: Shared) -> Callable[[Slots], Result]:
    """Builds the work of one slot: read, work, send, arrive.

    Args:
      bound: the exchange.
      shared: what all its clients see.

    Returns:
      `slot -> result`, for leaves without leading axes.
    """
    engine, exchange = bound.engine, bound.exchange
    inputs = shared.inputs
    work = exchange.client(inputs.backbone, shared.message)  # once a round and device
    passage_key = jax.random.wrap_key_data(shared.passage.key)

    def run(slot: Slots) -> Result:
        view = _view_of(bound, shared, slot)
        message, fetched = _addressed(bound, shared.message, slot, view.id)
        client_key = derive(passage_key, Purpose.CLIENT, view.id, bound.index)
        with jax.named_scope("client"):
            output: ClientOutput = work(message, slot.state, view, client_key)
        uplink_key = derive(passage_key, Purpose.UPLINK, view.id, bound.index)
        upload = _on_every_device(engine, output.upload)
        send = through(engine.uplink, engine.mesh, {MODEL})
        payload, sent, uplink = send(slot.uplink, upload, uplink_key)
        state = output.state(sent) if callable(output.state) else output.state
        arrived = arrives(
            engine,
            active=slot.active,
            client=view.id,
            round_index=inputs.round,
            round_key=jax.random.wrap_key_data(inputs.key),
        )
        fault = _fault(bound, arrived, view.id, output, sent)
        contribution = exchange.reduce.lift(shared.server, sent, output.weight)
        uploaded = counted_bytes(engine.uplink.bits(payload))
        counted = (contribution, _as_floats(output.metrics), jnp.int32(1), uploaded)
        contribution, metrics, n_arrived, uploaded = _or_zeros(arrived, counted)
        if engine.behaviour.drops is not None or exchange.selects is not None:
            # Elsewhere the states of empty slots are dropped when they are scattered.
            before = (slot.state, slot.uplink)
            state, uplink = trees.select(arrived, (state, uplink), before)
        is_stacked = exchange.reduce.keep
        totals = Totals(
            contribution=() if is_stacked else contribution,
            metrics=metrics,
            n_started=slot.active.astype(jnp.int32),
            n_arrived=n_arrived,
            uplink_bytes=uploaded,
            downlink_bytes=_or_zeros(slot.active, fetched),
        )
        return Result(
            totals=totals,
            stacked=(contribution, arrived) if is_stacked else (),
            fault=fault,
            state=state,
            uplink=uplink,
        )

    return run


def through(channel: Channel, mesh: Mesh, axes: set[str]) -> Callable:
    """A channel's way from encoding to decoding, the same on every device.

    Args:
      channel: of the run.
      mesh: of the run.
      axes: of the mesh, those that are not manual yet.

    Returns:
      `(state, message, key) -> (payload, what is received, next state)`.
    """
    if channel == identity():
        return functools.partial(_passed, channel)

    def of_data(state: Any, message: Tree, key_data: jax.Array):
        return _passed(channel, state, message, jax.random.wrap_key_data(key_data))

    passed = by_each_device(of_data, mesh, axes)

    def way(state: Any, message: Tree, key: jax.Array):
        return passed(state, message, jax.random.key_data(key))

    return way


def _passed(channel: Channel, state: Any, message: Tree, key: jax.Array):
    with jax.named_scope("encode"):
        payload, state = channel.encode(state, message, key)
    with jax.named_scope("decode"):
        received = channel.decode(payload)
    return payload, received, state


def _view_of(bound: BoundExchange, shared: Shared, slot: Slots) -> ClientData:
    """What the client of a slot sees of the world."""
    engine, inputs = bound.engine, shared.inputs
    cohort = inputs.cohort
    # an empty slot reads the last client and counts nothing
    number = jnp.minimum(slot.number, cohort.ids.shape[0] - 1)
    client, place = cohort.ids[number], cohort.data_places[number]
    round_key = jax.random.wrap_key_data(inputs.key)
    return client_data(
        inputs.data,
        client=client,
        place=place,
        active=slot.active,
        round_index=inputs.round,
        batches=bound.exchange.batches,
        round_key=round_key,
        n_max=engine.n_max,
        most_steps=step_limit(engine, client, inputs.round, round_key),
        repeat=shared.passage.number,
    )


def _addressed(
    bound: BoundExchange, message: Tree, slot: Slots, client: jax.Array
) -> tuple[Tree, Any]:
    """(what this client is sent, limbs of its bytes or () where all are sent the same)."""
    address = bound.exchange.address
    if address is None:
        return message, ()
    own = address(message, slot.state, client)
    bits = identity().bits(billed(own))
    return unwrapped(own), counted_bytes(bits)


def _on_every_device(engine: Engine, upload: Tree) -> Tree:
    """The upload in one piece on every device of the axis `model`.

    A channel may loop as often as the data decide, and devices that hold parts of one
    array would wait for each other in every turn.
    """
    if engine.mesh.shape[MODEL] == 1:
        return upload

    def whole(x):
        return jax.lax.with_sharding_constraint(x, P())

    return jax.tree.map(whole, upload)


def _fault(
    bound: BoundExchange,
    arrived: jax.Array,
    client: jax.Array,
    output: ClientOutput,
    sent: Tree,
) -> jax.Array:
    """i32[]: the client's id if it arrived with NaN or infinity."""
    sum_is_enough = bound.sum_shows_nan and not bound.engine.searches_each
    searched = () if sum_is_enough else (output.upload, sent)
    finite = trees.all_finite((searched, output.weight, dict(output.metrics)))
    return fault_of_client(arrived & ~finite, client)


def _as_floats(metrics: Any) -> dict[str, Any]:
    def as_float(x):
        return jnp.asarray(x, jnp.float32)

    return jax.tree.map(as_float, dict(metrics))


def _or_zeros(condition: jax.Array, tree: Tree) -> Tree:
    """The tree where the condition holds, else zeros.

    An empty slot may have computed anything, NaN included: select, never multiply by 0.
    """
    return trees.select(condition, tree, jax.tree.map(jnp.zeros_like, tree))


# Many clients


@functools.lru_cache(maxsize=64)
def over_cohort(bound: BoundExchange) -> Callable[[Shared, Slots], Result]:
    """The exchange over all slots.

    The same per-device function runs under `shard_map`, inside the program of many
    rounds, or under `pmap`, which dispatches every exchange by itself.

    Args:
      bound: the exchange.

    Returns:
      `f(shared, slots [D, n_blocks, W, ...]) -> result`, totals summed over devices.
    """
    engine = bound.engine
    per_device = functools.partial(_per_device, bound)
    if engine.parallel == "pmap":
        return _pmapped(per_device, engine)

    def of_one_row(shared: Shared, slots: Slots) -> Result:
        result = per_device(shared, _without_axis(slots))
        return result._replace(
            stacked=_with_axis(result.stacked),
            state=_with_axis(result.state),
            uplink=_with_axis(result.uplink),
        )

    out_specs = Result(
        totals=P(),  # type: ignore[arg-type]
        stacked=P(CLIENTS),
        fault=P(),  # type: ignore[arg-type]
        state=P(CLIENTS),
        uplink=P(CLIENTS),
    )
    # check_vma costs 2.8 times here; equality with the plain loop is held by tests.
    return jax.shard_map(
        of_one_row,
        mesh=engine.mesh,
        in_specs=(P(), P(CLIENTS)),
        out_specs=out_specs,
        axis_names=_manual_axes(engine.mesh),
        check_vma=False,
    )


def _manual_axes(mesh: Mesh) -> set[str]:
    """The mesh's axes that XLA has no say in: an axis `model` that splits stays XLA's.

    One of a single device must not: kernels for TPUs are refused where any is.
    """
    return {CLIENTS} if mesh.shape[MODEL] > 1 else {CLIENTS, MODEL}


# Slices of lax: JAX traces `x[i]` some ten times as long, and a state has many leaves.


def _row(tree: Tree, i: int | jax.Array) -> Tree:
    """Entry i of the first axis of every leaf."""

    def row(x):
        return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

    return jax.tree.map(row, tree)


def _with_row(tree: Tree, i: int | jax.Array, new: Tree) -> Tree:
    """The tree with entry i of the first axis of every leaf written."""

    def written(x, y):
        return jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), i, 0)

    return jax.tree.map(written, tree, new)


def _without_axis(tree: Tree) -> Tree:
    def first(x):
        return jax.lax.index_in_dim(x, 0, keepdims=False)

    return jax.tree.map(first, tree)


def _with_axis(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x[None], tree)


def _pmapped(
    per_device: Callable[[Shared, Slots], Result], engine: Engine
) -> Callable[[Shared, Slots], Result]:
    """The exchange under `pmap`, its operands laid out as pmap takes them."""
    mesh = Mesh(engine.mesh.devices.reshape(-1), (CLIENTS,))
    everywhere = NamedSharding(mesh, P())
    split = NamedSharding(mesh, P(CLIENTS))
    totals_and_fault_agree = Result(
        totals=None,  # type: ignore[arg-type]
        stacked=0,
        fault=None,  # type: ignore[arg-type]
        state=0,
        uplink=0,
    )
    mapped = jax.pmap(
        per_device,
        CLIENTS,
        in_axes=(None, 0),
        out_axes=totals_and_fault_agree,
        devices=list(mesh.devices),
    )

    def run(shared: Shared, slots: Slots) -> Result:
        shared = jax.device_put(shared, everywhere)
        return mapped(shared, jax.device_put(slots, split))

    return run


def _per_device(bound: BoundExchange, shared: Shared, slots: Slots) -> Result:
    """One device's slots, [n_blocks, W, ...]."""
    plan = bound.engine.plan
    result = _over_blocks(one_client(bound, shared), plan.block_size, slots)
    if plan.n_devices == 1:  # a sum over one device would still wait at a meeting point
        return result
    with jax.named_scope("reduce"):
        return _over_devices(result, plan.n_devices)


def _over_devices(result: Result, n_devices: int) -> Result:
    """The sums over devices and the first fault, as two messages and no more.

    Contributions and metrics are summed as they are. Counts travel as one vector, and
    with them the fault: each device has an entry of its own, so that a sum is enough.
    """
    totals = result.totals
    counts = totals._replace(contribution=(), metrics={})
    is_here = jnp.arange(n_devices) == jax.lax.axis_index(CLIENTS)
    faults = jnp.where(is_here, result.fault, 0)
    leaves, treedef = jax.tree.flatten((counts, faults))
    words = jax.lax.psum(_as_words(leaves), CLIENTS)
    counts, faults = jax.tree.unflatten(treedef, _from_words(words, leaves))
    sums = (totals.contribution, totals.metrics)
    contribution, metrics = jax.lax.psum(sums, CLIENTS)
    totals = counts._replace(contribution=contribution, metrics=metrics)
    return result._replace(totals=totals, fault=jnp.min(faults))


def _as_words(leaves: list[jax.Array]) -> jax.Array:
    """Arrays of 32-bit whole numbers as one i32 vector; sums wrap around alike."""
    rows = [jax.lax.bitcast_convert_type(x, jnp.int32).reshape(-1) for x in leaves]
    return jnp.concatenate(rows)


def _from_words(words: jax.Array, like: list[jax.Array]) -> list[jax.Array]:
    """The arrays of `_as_words` again, with the shapes and dtypes of `like`."""
    ends = np.cumsum([x.size for x in like])[:-1]
    parts = jnp.split(words, ends)

    def restored(part, x):
        return jax.lax.bitcast_convert_type(part.reshape(x.shape), x.dtype)

    return [restored(part, x) for part, x in zip(parts, like, strict=True)]


def _over_blocks(
    run: Callable[[Slots], Result], block_size: int, slots: Slots
) -> Result:
    """A loop over the blocks of one device; blocks that are empty are not computed."""
    # The inner jit only saves time: one trace serves for the shapes and for the loop.
    lifted = jax.vmap(run) if block_size > 1 else _of_one(run)
    block_of = jax.jit(lifted)

    def step(i, carry: Result) -> Result:
        block = slots._replace(state=carry.state, uplink=carry.uplink)
        part = block_of(_row(block, i))
        return Result(
            totals=jax.tree.map(_add_block, carry.totals, part.totals),
            stacked=_with_row(carry.stacked, i, part.stacked),
            fault=jnp.minimum(carry.fault, jnp.min(part.fault)),
            state=_with_row(carry.state, i, part.state),
            uplink=_with_row(carry.uplink, i, part.uplink),
        )

    shapes: Result = jax.eval_shape(block_of, _without_axis(slots))
    n_blocks = slots.number.shape[0]
    empty = _empty_result(shapes, n_blocks, slots)
    if n_blocks == 1:  # a loop of one passage costs more than it saves for an empty one
        return step(0, empty)
    # clients are laid out longest first: empty blocks are last
    used = jnp.sum(jnp.any(slots.active, axis=1), dtype=jnp.int32)
    with jax.named_scope("blocks"):
        return jax.lax.fori_loop(0, used, step, empty)


def _add_block(total: jax.Array, x: jax.Array) -> jax.Array:
    return total + jnp.sum(x, axis=0, dtype=total.dtype)


def _empty_result(shapes: Result, n_blocks: int, slots: Slots) -> Result:
    """The result of no client, with which the loop over blocks begins.

    Args:
      shapes: of a block's result, leaves [W, ...].
      n_blocks: of the device.
      slots: whose states are the first ones.
    """

    def no_sum(s):
        return jnp.zeros(s.shape[1:], s.dtype)

    def no_rows(s):
        return jnp.zeros((n_blocks, *s.shape), s.dtype)

    return Result(
        totals=jax.tree.map(no_sum, shapes.totals),
        stacked=jax.tree.map(no_rows, shapes.stacked),
        fault=no_fault(),
        state=slots.state,
        uplink=slots.uplink,
    )


def _of_one(run: Callable[[Slots], Result]) -> Callable[[Slots], Result]:
    """A block of one client.

    `vmap` of width one would turn every matrix product into a batched one, which CPUs
    run slower.
    """

    def block_of(block: Slots) -> Result:
        result = run(_without_axis(block))
        return _with_axis(result)

    return block_of
