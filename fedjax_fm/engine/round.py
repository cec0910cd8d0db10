"""One round as a pure function.

Per exchange: broadcast -> (client -> encode -> decode -> lift -> sum over blocks and
devices) -> server. States are gathered once before and scattered once after. Clients
stream through in blocks: no array of shape [cohort, delta] exists, unless a reduction
keeps it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.engine.blocks import lift
from fedjax_fm.engine.client import arrives, most_steps
from fedjax_fm.engine.data import DeviceData, n_processed, n_steps
from fedjax_fm.engine.errors import told
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.message import billed, unwrap, with_billed
from fedjax_fm.engine.parts import (
    NO_CLIENT,
    OUTSIDE,
    OVERFLOW,
    SOMEBODY,
    Cohort,
    Engine,
    Result,
    RoundState,
    Shared,
    Slots,
    digits,
)
from fedjax_fm.engine.plan import deal
from fedjax_fm.types import Aggregate, Exchange, Repeat, Stack, Tree

RESERVED = {
    "clients",
    "examples",
    "examples_processed",
    "uplink_bytes",
    "downlink_bytes",
}  # metrics of every run


class Inputs(NamedTuple):
    """What stays as it is throughout a round."""

    backbone: Tree
    data: DeviceData
    cohort: Cohort
    round: jax.Array  # i32[]
    key: jax.Array  # the round's
    able: jax.Array  # bool[C]: has examples and time
    sizes: jax.Array  # i32[C], examples
    limits: jax.Array | None  # i32[C], steps that stragglers manage


class Running(NamedTuple):
    """What passes from exchange to exchange."""

    server: Any
    state: Any  # of the cohort's clients, leaves [slots, ...] in the order of the round's own deal
    wires: tuple  # per exchange, the uplink's, likewise
    downlinks: tuple
    took: jax.Array  # bool[C]: takes part in an exchange
    # u32[C]: rows of the local steps, of exchanges that take some of the clients; ()
    # without any
    processed: Any
    sums: dict[str, tuple[jax.Array, jax.Array]]  # metrics, sums and counts
    counts: dict[str, jax.Array]  # per exchange, leading axis
    bad: jax.Array  # i32[]


def broadcast(
    engine: Engine, exchange: Exchange, server: Any, wire: Any, key: jax.Array
) -> tuple[Tree, Any, Any]:
    """(message as clients read it, next state of the downlink, bits).

    `Unbilled` parts do not pass the channel.
    """
    message = exchange.broadcast(server)
    payload, wire = engine.downlink.encode(wire, billed(message), key)
    received = engine.downlink.decode(payload)
    return unwrap(with_billed(message, received)), wire, engine.downlink.bits(payload)


def _load(inputs: Inputs, exchange: Exchange) -> jax.Array:
    return n_steps(inputs.sizes, exchange.batches, inputs.limits)


def _flat(tree: Tree) -> Tree:
    """Leaves [D, n_blocks, W, ...] -> [slots, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), tree)


def _stack(kept: tuple[Tree, jax.Array], slots: Slots, ids: jax.Array) -> Stack:
    """What each client contributed, and whether it arrived, back in the sampler's order."""
    numbers = jnp.where(slots.active, slots.number, ids.size).reshape(-1)

    def in_order(x):
        return (
            jnp.zeros((ids.size, *x.shape[1:]), x.dtype).at[numbers].set(x, mode="drop")
        )

    values, arrived = jax.tree.map(in_order, _flat(kept))
    return Stack(values, arrived, ids)


def _own_slots(
    engine: Engine,
    inputs: Inputs,
    base: Slots,
    running: Running,
    index: int,
    takes: jax.Array,
):
    """(slots, put): a deal of those alone who take part in exchange `index`.

    `put(result)` -> (state, wire) in the order of `base`.
    """
    capacity, n_slots = inputs.cohort.ids.shape[0], base.number.size
    slots = Slots(
        *deal(inputs.able & takes, _load(inputs, engine.exchanges[index]), engine.plan),
        (),
        (),
    )
    where_in_base = (
        jnp.zeros(capacity, jnp.int32)
        .at[base.number.reshape(-1)]
        .set(jnp.arange(n_slots), mode="drop")
    )
    source = where_in_base[jnp.minimum(slots.number, capacity - 1)]
    target = jnp.where(slots.number < capacity, source, n_slots).reshape(-1)
    whole = (running.state, running.wires[index])
    state, wire = jax.tree.map(lambda x: x[source], _flat(whole))

    def put(result: Result) -> Tree:
        def back(old, new):
            return (
                old.reshape(-1, *old.shape[3:])
                .at[target]
                .set(new, mode="drop")
                .reshape(old.shape)
            )

        return jax.tree.map(back, whole, _flat((result.state, result.wire)))

    return slots._replace(state=state, wire=wire), put


def _exchange(
    engine: Engine,
    index: int,
    inputs: Inputs,
    base: Slots,
    running: Running,
    repeat: jax.Array,
    key: jax.Array,
) -> Running:
    """One exchange; `key` is the passage's."""
    exchange = engine.exchanges[index]
    message, downlink, bits = broadcast(
        engine,
        exchange,
        running.server,
        running.downlinks[index],
        derive(key, Purpose.DOWNLINK, index),
    )
    takes, processed = jnp.ones_like(inputs.able), running.processed
    slots = base._replace(state=running.state, wire=running.wires[index])

    def put(result: Result) -> Tree:
        return (result.state, result.wire)

    if exchange.selects is not None:
        one_takes = exchange.selects

        def keyed(client):
            return one_takes(
                message, client, derive(key, Purpose.SELECT, client, index)
            )

        takes = jax.vmap(keyed)(jnp.asarray(inputs.cohort.ids))
        rows = n_processed(inputs.sizes, exchange.batches, inputs.limits)
        processed = jnp.maximum(processed, jnp.where(takes, rows, 0))
        slots, put = _own_slots(engine, inputs, base, running, index, takes)
    shared = Shared(
        server=running.server,
        message=message,
        backbone=inputs.backbone,
        data=inputs.data,
        cohort=inputs.cohort,
        round=inputs.round,
        key=jax.random.key_data(inputs.key),
        repeat=repeat,
        passage_key=jax.random.key_data(key),
    )
    result: Result = lift(engine, index)(shared, slots)
    state, wire = put(result)
    totals, reduce, bad = (
        result.totals,
        exchange.reduce,
        jnp.minimum(running.bad, result.bad),
    )
    if engine.sum_tells(exchange):
        bad = jnp.minimum(
            bad, jnp.where(trees.all_finite(totals.contribution), NO_CLIENT, SOMEBODY)
        )
    total = (
        _stack(result.kept, slots, inputs.cohort.ids)
        if reduce.keep
        else totals.contribution
    )
    aggregate = Aggregate(reduce.finish(total, engine.setting), totals.n_clients)
    with told(
        f"in the server of exchange {index}, which was given {trees.described(aggregate.value)}"
    ):
        server, metrics = exchange.server(
            running.server, aggregate, derive(key, Purpose.SERVER, index)
        )
    gauges = {
        name: (jnp.float32(value), jnp.float32(1)) for name, value in metrics.items()
    }
    if exchange.address is None and not isinstance(bits, int):
        totals = totals._replace(
            downlink=digits((bits + 7) // 8) * totals.n_started.astype(jnp.uint32)
        )
    found = {
        "started": totals.n_started,
        "clients": totals.n_clients,
        "uplink": totals.uplink,
        "downlink": totals.downlink,
    }

    def at_index(old, new):
        return old if isinstance(new, tuple) else old.at[index].add(new)

    def replaced(row, new):
        return (*row[:index], new, *row[index + 1 :])

    return Running(
        server=server,
        state=state,
        wires=replaced(running.wires, wire),
        downlinks=replaced(running.downlinks, downlink),
        took=running.took | takes,
        processed=processed,
        sums=_merged(_merged(running.sums, totals.metrics), gauges),
        counts={
            name: at_index(running.counts[name], new) for name, new in found.items()
        },
        bad=bad,
    )


def _processed(
    engine: Engine, inputs: Inputs, running: Running, came: jax.Array
) -> jax.Array:
    """u32[3], as `digits`: rows that the local steps went through of those who came,
    each client's counted in the exchange of the round with the most of them.
    """
    common = [e for e in engine.exchanges if e.selects is None]
    if engine.all_alike and len(common) == len(
        engine.exchanges
    ):  # no array that grows with the cohort
        one = [n_processed(jnp.int32(engine.n_max), e.batches) for e in common]
        return digits(functools.reduce(jnp.maximum, one)) * jnp.sum(
            came, dtype=jnp.int32
        ).astype(jnp.uint32)
    found = [n_processed(inputs.sizes, e.batches, inputs.limits) for e in common]
    if len(common) < len(engine.exchanges):
        found.append(running.processed)
    rows = jnp.where(came, functools.reduce(jnp.maximum, found), 0)
    return jnp.sum(jax.vmap(digits)(rows), axis=0, dtype=jnp.uint32)


def _merged(sums: dict, more: dict) -> dict:
    """Sums and counts of both; exchanges that report the same metric, add."""

    def add(name):
        return (
            jax.tree.map(jnp.add, sums[name], more[name])
            if name in sums
            else more[name]
        )

    return {**sums, **{name: add(name) for name in more}}


def _repeat(
    engine: Engine,
    first: int,
    group: Repeat,
    inputs: Inputs,
    base: Slots,
    running: Running,
) -> Running:
    """The group's exchanges, numbered from `first`, `times` over."""

    def passage(i, running: Running) -> Running:
        key = derive(inputs.key, Purpose.REPEAT, i)
        for index in range(first, first + len(group.exchanges)):
            running = _exchange(engine, index, inputs, base, running, i, key)
        return running

    if engine.parallel == "pmap":  # dispatches every exchange by itself
        for i in range(group.times):
            running = passage(jnp.int32(i), running)
        return running
    passage = jax.jit(
        passage
    )  # one trace serves for the names of the metrics and for the loop
    sums = jax.eval_shape(passage, jnp.int32(0), running).sums
    zeros = {
        name: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), pair)
        for name, pair in sums.items()
    }
    return jax.lax.fori_loop(
        0, group.times, passage, running._replace(sums={**zeros, **running.sums})
    )


def _bad_draw(cohort: Cohort, n_clients: int) -> jax.Array:
    """i32[]: OVERFLOW, OUTSIDE or NO_CLIENT."""
    ids = jnp.asarray(cohort.ids)
    active = jnp.arange(ids.shape[0]) < cohort.n_active
    outside = jnp.any(active & ((ids < 0) | (ids >= n_clients)))
    overflow = cohort.n_active > ids.shape[0]
    return jnp.where(outside, OUTSIDE, jnp.where(overflow, OVERFLOW, NO_CLIENT)).astype(
        jnp.int32
    )


def _inputs(
    engine: Engine,
    backbone: Tree,
    data: DeviceData,
    state: RoundState,
    cohort: Cohort,
    key,
) -> Inputs:
    """Clients without examples or without time take no part."""
    if (
        engine.n_min == engine.n_max
    ):  # nothing to read, and no memory that grows with the cohort
        sizes = jnp.full(cohort.ids.shape, engine.n_max, jnp.int32)
    else:
        sizes = data.offsets[cohort.data_places + 1] - data.offsets[cohort.data_places]
    limits = jax.vmap(lambda client: most_steps(engine, client, state.round, key))(
        cohort.ids
    )
    able = (jnp.arange(cohort.ids.shape[0]) < cohort.n_active) & (sizes > 0)
    able = able if limits is None else able & (limits > 0)
    return Inputs(
        backbone=backbone,
        data=data,
        cohort=cohort,
        round=state.round,
        key=key,
        able=able,
        sizes=jnp.asarray(sizes),
        limits=limits,
    )


def round_step(
    engine: Engine,
    backbone: Tree,
    data: DeviceData,
    state: RoundState,
    cohort: Cohort,
    key: jax.Array,
):
    """One round, pure.

    Args:
      data: of the whole population or of the cohort, as `cohort.data_places` says;
        likewise the states.
      key: the round's key.

    Returns:
      (state, metrics, bad): metric sums and counts by name, and the smallest id of a
      client whose upload or metrics were not finite (NO_CLIENT if there is none;
      SOMEBODY if it is known only that there is one; OVERFLOW or OUTSIDE if the draw
      itself is impossible). With a bad round the state is the one that came in.
    """
    inputs = _inputs(engine, backbone, data, state, cohort, key)
    everyone, exchanges = jnp.ones_like(inputs.able), engine.exchanges
    common = [
        e for e in exchanges if e.selects is None
    ] or exchanges  # those that all compute decide who sits where
    load = (
        None if engine.all_alike else jnp.asarray(sum(_load(inputs, e) for e in common))
    )
    base = Slots(*deal(inputs.able, load, engine.plan), (), ())
    places = cohort.state_places[jnp.minimum(base.number, cohort.ids.shape[0] - 1)]

    def gather(tree):
        return jax.tree.map(lambda x: x[places], tree)

    n, zeros = len(exchanges), lambda *shape: jnp.zeros(shape, jnp.int32)
    counts = {
        "started": zeros(n),
        "clients": zeros(n),
        "uplink": zeros(n, 3),
        "downlink": zeros(n, 3),
    }
    counts = {
        name: x.astype(jnp.uint32) if x.ndim > 1 else x for name, x in counts.items()
    }
    takes_some = any(exchange.selects is not None for exchange in exchanges)
    running = Running(
        server=state.server,
        state=gather(state.clients),
        wires=gather(state.uplinks),
        downlinks=state.downlinks,
        took=~everyone,
        processed=jnp.zeros(cohort.ids.shape, jnp.uint32) if takes_some else (),
        sums={},
        counts=counts,
        bad=_bad_draw(cohort, engine.setting.n_clients),
    )
    index = 0
    for group in engine.algorithm.exchanges:
        if isinstance(group, Repeat):
            running = _repeat(engine, index, group, inputs, base, running)
            index += len(group.exchanges)
        else:
            running = _exchange(engine, index, inputs, base, running, jnp.int32(0), key)
            index += 1
    if taken := RESERVED & set(running.sums):
        raise ValueError(
            f"metrics named {sorted(taken)} are the engine's own; give the task's "
            "or the method's other names"
        )
    # Between exchanges the server may carry more; from round to round it may not.
    if problem := trees.difference(state.server, running.server):
        raise ValueError(
            f"the server's state after a round is not like the one before it: {problem}"
        )
    came = jax.vmap(
        lambda active, client: arrives(engine, active, client, state.round, key)
    )(inputs.able & running.took, jnp.asarray(cohort.ids))
    counts = {
        **running.counts,
        "arrived": jnp.sum(came, dtype=jnp.int32),
        "examples": jnp.sum(jnp.where(came, inputs.sizes, 0), dtype=jnp.int32),
        "processed": _processed(engine, inputs, running, came),
    }
    return (
        _outcome(engine, state, running, base, places),
        {"ratios": running.sums, "counts": counts},
        running.bad,
    )


def _outcome(
    engine: Engine, state: RoundState, running: Running, base: Slots, places: jax.Array
) -> RoundState:
    """The state after the round; the one before it, if the round went wrong."""
    good = running.bad == NO_CLIENT

    # As it came, or the next round would be compiled again.
    def kept(x):
        return (
            jax.lax.with_sharding_constraint(x, engine.state_sharding)
            if engine.shares_states
            else x
        )

    # Places outside the store drop a write: empty slots, and all of a round that went wrong.
    where = jnp.where(base.active & good, places, NO_CLIENT)

    def scatter(store, new):
        return jax.tree.map(
            lambda s, x: kept(s.at[where].set(x, mode="drop")), store, new
        )

    return RoundState(
        server=trees.select(good, running.server, state.server),
        clients=scatter(state.clients, running.state),
        uplinks=scatter(state.uplinks, running.wires),
        downlinks=trees.select(good, running.downlinks, state.downlinks),
        sampler=state.sampler,
        round=state.round + good.astype(jnp.int32),
    )
