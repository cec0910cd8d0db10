"""One round as a pure function, told from the top.

A round gathers the states of its cohort, runs its exchanges one after the other, and
scatters the states. An exchange has six stages:

    broadcast   the server's message, through the downlink
    select      who of the cohort it is for, laid out in slots
    work        each client: read, compute, encode, decode, contribute   (clients.py)
    reduce      the sum of the contributions, finished
    serve       the server's next state
    count       bytes, clients, metrics, faults

Clients stream through in blocks: no array of shape [cohort, delta] exists, unless a
reduction keeps it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.engine import state_rows
from fedjax_fm.engine.billing import billed, counted_bytes, unwrapped, with_billed
from fedjax_fm.engine.clients import over_cohort, through
from fedjax_fm.engine.data import DeviceData
from fedjax_fm.engine.devices import CLIENTS, MODEL
from fedjax_fm.engine.faults import (
    fault_of_draw,
    fault_of_sum,
    is_good,
    noted,
)
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.participation import (
    Participation,
    Seating,
    arrived,
    examples_processed,
    flat,
    participation_of,
    rows_processed,
    seated,
    slots_of_all,
    states_after,
    wanted_by,
)
from fedjax_fm.engine.parts import (
    BoundExchange,
    Cohort,
    Engine,
    Passage,
    Result,
    RoundInputs,
    Shared,
    Slots,
    Totals,
)
from fedjax_fm.engine.state import RoundState
from fedjax_fm.types import Aggregate, Repeat, Stack, Tree

# metrics of every run
RESERVED = {
    "clients",
    "examples",
    "examples_processed",
    "clients_lost",
    "examples_lost",
    "uplink_bytes",
    "downlink_bytes",
}


class RoundContext(NamedTuple):
    """What exchanges read: the round's inputs, who takes part, where they sit."""

    inputs: RoundInputs
    participation: Participation
    slots: Slots  # the round's own, without states
    passage: Passage  # of the exchange that runs


class RoundCarry(NamedTuple):
    """What passes from exchange to exchange."""

    server: Any
    clients: Any  # states of the cohort's clients, leaves as in the round's own slots
    uplinks: tuple  # per exchange, the uplink's, likewise
    downlinks: tuple  # per exchange, the downlink's at the server
    wanted: jax.Array  # bool[C]: by an exchange so far, eligible or not
    processed: Any  # u32[C], see `rows_processed`
    sums: dict[str, tuple[jax.Array, jax.Array]]  # metrics, sums and counts
    counts: dict[str, jax.Array]  # per exchange, leading axis
    fault: jax.Array  # i32[]


class Broadcast(NamedTuple):
    """What the server has sent."""

    message: Tree  # as clients read it
    downlink: Any  # next state of the channel
    bits: Any  # of the payload, int or u32[]


def round_step(
    engine: Engine,
    backbone: Tree,
    data: DeviceData,
    state: RoundState,
    cohort: Cohort,
    key: jax.Array,
) -> tuple[RoundState, dict[str, Any], jax.Array]:
    """One round, pure.

    Args:
      engine: what is fixed for the run.
      backbone: the frozen parameters.
      data: of the whole population or of the cohort, as `cohort.data_places` says.
      state: before the round; clients' states likewise.
      cohort: who is drawn.
      key: the round's.

    Returns:
      (state, metrics, fault): sums and counts of metrics by name, and the smallest id of
      a client whose upload or metrics were not finite, or a `Fault`. After a round with
      a fault the state is the one that came in.
    """
    inputs = RoundInputs(
        backbone=backbone, data=data, cohort=cohort, round=state.round, key=key
    )
    participation = participation_of(engine, inputs)
    slots = slots_of_all(engine, participation)
    context = RoundContext(
        inputs=inputs,
        participation=participation,
        slots=slots,
        passage=Passage(number=jnp.int32(0), key=key),
    )
    last = cohort.ids.shape[0] - 1
    places = cohort.state_places[jnp.minimum(slots.number, last)]
    running = _begin(engine, context, state, places)
    running = _all_exchanges(engine, context, running)
    _check_metrics(running)
    _check_server(state, running)
    metrics = _metrics(engine, context, running)
    after = _state_after(engine, context, state, running, places)
    return after, metrics, running.fault


def _begin(
    engine: Engine, context: RoundContext, state: RoundState, places: jax.Array
) -> RoundCarry:
    """The carry before the first exchange.

    Args:
      engine: of the run.
      context: what exchanges read.
      state: before the round.
      places: the rows of the slots' clients in the stores of states.
    """
    stores = (state.clients, state.uplinks)
    clients, uplinks = state_rows.taken(engine, stores, places)
    exchanges, eligible = engine.exchanges, context.participation.eligible
    n = len(exchanges)
    selects_some = any(bound.exchange.selects is not None for bound in exchanges)
    counts = {
        "started": jnp.zeros(n, jnp.int32),
        "arrived": jnp.zeros(n, jnp.int32),
        "uplink": jnp.zeros((n, 3), jnp.uint32),
        "downlink": jnp.zeros((n, 3), jnp.uint32),
    }
    cohort = context.inputs.cohort
    drawn = fault_of_draw(cohort.ids, cohort.n_active, engine.setting.n_clients)
    return RoundCarry(
        server=state.server,
        clients=clients,
        uplinks=uplinks,
        downlinks=state.downlinks,
        wanted=jnp.zeros_like(eligible),
        processed=jnp.zeros(eligible.shape, jnp.uint32) if selects_some else (),
        sums={},
        counts=counts,
        fault=jnp.minimum(drawn, cohort.fault),
    )


def _all_exchanges(
    engine: Engine, context: RoundContext, running: RoundCarry
) -> RoundCarry:
    """The exchanges of a round in turn, those of a `Repeat` as a loop."""
    waiting = list(engine.exchanges)
    for group in engine.algorithm.exchanges:
        if isinstance(group, Repeat):
            n = len(group.exchanges)
            members, waiting = waiting[:n], waiting[n:]
            running = _repeat(engine, members, group.times, context, running)
        else:
            running = _exchange(waiting.pop(0), context, running)
    return running


def _repeat(
    engine: Engine,
    members: list[BoundExchange],
    times: int,
    context: RoundContext,
    running: RoundCarry,
) -> RoundCarry:
    """The exchanges of a `Repeat`, `times` over."""

    def passage(i, running: RoundCarry) -> RoundCarry:
        key = derive(context.inputs.key, Purpose.REPEAT, i)
        here = context._replace(passage=Passage(number=i, key=key))
        for bound in members:
            running = _exchange(bound, here, running)
        return running

    if engine.parallel == "pmap":  # dispatches every exchange by itself
        for i in range(times):
            running = passage(jnp.int32(i), running)
        return running
    passage = jax.jit(passage)  # traced for the names of the metrics, and for the loop
    shapes = jax.eval_shape(passage, jnp.int32(0), running).sums
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    running = running._replace(sums={**zeros, **running.sums})
    return jax.lax.fori_loop(0, times, passage, running)


def _exchange(
    bound: BoundExchange, context: RoundContext, running: RoundCarry
) -> RoundCarry:
    """One exchange, in its six stages; profilers show them by their names."""
    downlink = running.downlinks[bound.index]
    with jax.named_scope("broadcast"):
        down = broadcast(bound, running.server, downlink, context.passage.key)
    with jax.named_scope("deal"):
        seating = _select(bound, context, running, down)
    result = _work(bound, context, running, down, seating.slots)
    with jax.named_scope("reduce"):
        aggregate = _reduce(bound, context, seating, result)
    with jax.named_scope("server"):
        server, metrics = _serve(bound, context, running, aggregate)
    counted = _count(bound, context, running, seating, result)
    served = counted._replace(server=server, sums=_with_gauges(counted.sums, metrics))
    return _with_states(bound, served, down, seating, result)


# The stages


def broadcast(
    bound: BoundExchange, server: Any, downlink: Any, key: jax.Array
) -> Broadcast:
    """The server's message through the downlink; `Unbilled` parts do not pass it.

    Args:
      bound: the exchange.
      server: the server's state.
      downlink: the channel's state.
      key: the passage's.
    """
    engine = bound.engine
    message = bound.exchange.broadcast(server)
    key = derive(key, Purpose.DOWNLINK, bound.index)
    pass_on = through(engine.downlink, engine.mesh, {CLIENTS, MODEL})
    payload, received, downlink = pass_on(downlink, billed(message), key)
    return Broadcast(
        message=unwrapped(with_billed(message, received)),
        downlink=downlink,
        bits=engine.downlink.bits(payload),
    )


def _select(
    bound: BoundExchange, context: RoundContext, running: RoundCarry, down: Broadcast
) -> Seating:
    """Whom the exchange is for, laid out in slots with their states."""
    return seated(
        bound,
        context.slots,
        context.participation,
        wanted_by(bound, down.message, context.inputs, context.passage),
        states=(running.clients, running.uplinks[bound.index]),
    )


def _work(
    bound: BoundExchange,
    context: RoundContext,
    running: RoundCarry,
    down: Broadcast,
    slots: Slots,
) -> Result:
    """What the clients of the exchange leave behind.

    Where the data decide the length of the broadcast, its bytes are added here. Keys
    travel as key data, which `shard_map` and `pmap` take.
    """
    inputs, passage = context.inputs, context.passage
    shared = Shared(
        server=running.server,
        message=down.message,
        inputs=inputs._replace(key=jax.random.key_data(inputs.key)),
        passage=passage._replace(key=jax.random.key_data(passage.key)),
    )
    result = over_cohort(bound)(shared, slots)
    if bound.exchange.address is not None or isinstance(down.bits, int):
        return result
    totals = result.totals
    n_started = totals.n_started.astype(jnp.uint32)
    n_bytes = counted_bytes(down.bits) * n_started
    return result._replace(totals=totals._replace(downlink_bytes=n_bytes))


def _reduce(
    bound: BoundExchange, context: RoundContext, seating: Seating, result: Result
) -> Aggregate:
    """What the server receives."""
    reduce, total = bound.exchange.reduce, result.totals.contribution
    if reduce.keep:
        total = _stack(result.stacked, seating.slots, context.inputs.cohort.ids)
    value = reduce.finish(total, bound.engine.setting)
    return Aggregate(value=value, n_clients=result.totals.n_arrived)


def _stack(stacked: tuple[Tree, jax.Array], slots: Slots, ids: jax.Array) -> Stack:
    """All contributions, back in the sampler's order."""
    numbers = jnp.where(slots.active, slots.number, ids.size).reshape(-1)

    def in_order(x):
        zeros = jnp.zeros((ids.size, *x.shape[1:]), x.dtype)
        return zeros.at[numbers].set(x, mode="drop")

    values, active = jax.tree.map(in_order, flat(stacked))
    return Stack(values=values, active=active, ids=ids)


def _serve(
    bound: BoundExchange,
    context: RoundContext,
    running: RoundCarry,
    aggregate: Aggregate,
) -> tuple[Any, dict[str, jax.Array]]:
    """The server's next state, and its metrics."""
    key = derive(context.passage.key, Purpose.SERVER, bound.index)
    given = trees.described(aggregate.value)
    with noted(f"in the server of exchange {bound.index}, which was given {given}"):
        return bound.exchange.server(running.server, aggregate, key)


def _count(
    bound: BoundExchange,
    context: RoundContext,
    running: RoundCarry,
    seating: Seating,
    result: Result,
) -> RoundCarry:
    """The counts, the clients' metrics and the fault, this exchange included."""
    totals = result.totals
    fault = jnp.minimum(running.fault, result.fault)
    if bound.sum_shows_nan:
        fault = jnp.minimum(fault, fault_of_sum(totals.contribution))
    processed = rows_processed(
        bound, context.participation, seating.wanted, running.processed
    )
    return running._replace(
        wanted=running.wanted | seating.wanted,
        processed=processed,
        sums=_merged(running.sums, totals.metrics),
        counts=_with_counts(running.counts, bound.index, totals),
        fault=fault,
    )


def _with_counts(
    counts: dict[str, jax.Array], index: int, totals: Totals
) -> dict[str, jax.Array]:
    """The counts of all exchanges, these totals added at `index`."""
    found = {
        "started": totals.n_started,
        "arrived": totals.n_arrived,
        "uplink": totals.uplink_bytes,
        "downlink": totals.downlink_bytes,
    }

    def added(name, new):
        if isinstance(new, tuple):  # shapes tell these bytes
            return counts[name]
        return counts[name].at[index].add(new)

    return {name: added(name, new) for name, new in found.items()}


def _with_gauges(sums: dict, metrics: dict[str, jax.Array]) -> dict:
    """The sums with the server's metrics, each counted once."""
    one = jnp.float32(1)
    gauges = {name: (jnp.float32(x), one) for name, x in metrics.items()}
    return _merged(sums, gauges)


def _merged(sums: dict, more: dict) -> dict:
    """Sums and counts of both; exchanges that report the same metric add up."""

    def both(name):
        if name not in sums:
            return more[name]
        return jax.tree.map(jnp.add, sums[name], more[name])

    return {**sums, **{name: both(name) for name in more}}


def _with_states(
    bound: BoundExchange,
    running: RoundCarry,
    down: Broadcast,
    seating: Seating,
    result: Result,
) -> RoundCarry:
    """The states of clients and channels after the exchange."""
    index = bound.index
    before = (running.clients, running.uplinks[index])
    found = (result.state, result.uplink)
    clients, uplink = states_after(bound.engine, seating, before, found)

    def replaced(row, new):
        return (*row[:index], new, *row[index + 1 :])

    return running._replace(
        clients=clients,
        uplinks=replaced(running.uplinks, uplink),
        downlinks=replaced(running.downlinks, down.downlink),
    )


# The end of a round


def _check_metrics(running: RoundCarry) -> None:
    """Refuses metrics that bear the names of the engine's own."""
    if taken := RESERVED & set(running.sums):
        raise ValueError(
            f"metrics named {sorted(taken)} are the engine's own; give the task's "
            "or the method's other names"
        )


def _check_server(state: RoundState, running: RoundCarry) -> None:
    """Refuses a server state of another form than before the round.

    Between exchanges the server may carry more; from round to round it may not.
    """
    if problem := trees.difference(state.server, running.server):
        raise ValueError(
            f"the server's state after a round is not like the one before it: {problem}"
        )


def _metrics(
    engine: Engine, context: RoundContext, running: RoundCarry
) -> dict[str, Any]:
    """Sums and counts of the round."""
    participation = context.participation
    inputs, wanted = context.inputs, running.wanted
    came = arrived(engine, inputs, participation, wanted)
    examples = jnp.where(came, participation.sizes, 0)
    counts = {
        **running.counts,
        "clients": jnp.sum(came, dtype=jnp.int32),
        "examples": jnp.sum(examples, dtype=jnp.int32),
        "processed": examples_processed(engine, participation, running.processed, came),
    }
    if engine.behaviour.drops is not None:
        lost = participation.eligible & wanted & ~came
        counts["lost"] = jnp.sum(lost, dtype=jnp.int32)
        counts["processed_lost"] = examples_processed(
            engine, participation, running.processed, lost
        )
    return {"ratios": running.sums, "counts": counts}


def _state_after(
    engine: Engine,
    context: RoundContext,
    state: RoundState,
    running: RoundCarry,
    places: jax.Array,
) -> RoundState:
    """The state after the round; the one before it, if the round went wrong."""
    good = is_good(running.fault)
    # Places outside of the store drop a write: those of empty slots, and all of a round
    # that went wrong.
    outside = jnp.iinfo(jnp.int32).max
    where = jnp.where(context.slots.active & good, places, outside)

    stores, new = (state.clients, state.uplinks), (running.clients, running.uplinks)
    stores = state_rows.put(engine, stores, where, new)
    if engine.shares_states:
        # As they came, or the next round would be compiled again.
        stores = jax.lax.with_sharding_constraint(stores, engine.state_sharding)
    clients, uplinks = stores
    return RoundState(
        server=trees.select(good, running.server, state.server),
        clients=clients,
        uplinks=uplinks,
        downlinks=trees.select(good, running.downlinks, state.downlinks),
        sampler=state.sampler,
        round=state.round + good.astype(jnp.int32),
    )
