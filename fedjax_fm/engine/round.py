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
from fedjax_fm.engine.billing import billed, counted_bytes, unwrapped, with_billed
from fedjax_fm.engine.clients import over_cohort
from fedjax_fm.engine.data import DeviceData
from fedjax_fm.engine.faults import (
    Fault,
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
    selected,
    slots_of_all,
    states_after,
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
    "uplink_bytes",
    "downlink_bytes",
}


class Table(NamedTuple):
    """What exchanges read: the round's inputs, who takes part, where they sit."""

    inputs: RoundInputs
    participation: Participation
    slots: Slots  # the round's own, without states
    passage: Passage  # of the exchange that runs


class Running(NamedTuple):
    """What passes from exchange to exchange."""

    server: Any
    clients: Any  # states of the cohort's clients, leaves as in the round's own slots
    uplinks: tuple  # per exchange, the uplink's, likewise
    downlinks: tuple  # per exchange, the downlink's at the server
    participated: jax.Array  # bool[C]: selected by an exchange so far
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
    table = Table(
        inputs=inputs,
        participation=participation,
        slots=slots,
        passage=Passage(number=jnp.int32(0), key=key),
    )
    last = cohort.ids.shape[0] - 1
    places = cohort.state_places[jnp.minimum(slots.number, last)]
    running = _first(engine, table, state, places)
    running = _all_exchanges(engine, table, running)
    _check_metrics(running)
    _check_server(state, running)
    metrics = _metrics(engine, table, running)
    after = _state_after(engine, table, state, running, places)
    return after, metrics, running.fault


def _first(
    engine: Engine, table: Table, state: RoundState, places: jax.Array
) -> Running:
    """Before the first exchange; `places` are where the slots' clients keep their states."""

    def gather(tree):
        return jax.tree.map(lambda x: x[places], tree)

    exchanges, eligible = engine.exchanges, table.participation.eligible
    n = len(exchanges)
    selects_some = any(bound.exchange.selects is not None for bound in exchanges)
    counts = {
        "started": jnp.zeros(n, jnp.int32),
        "arrived": jnp.zeros(n, jnp.int32),
        "uplink": jnp.zeros((n, 3), jnp.uint32),
        "downlink": jnp.zeros((n, 3), jnp.uint32),
    }
    cohort = table.inputs.cohort
    return Running(
        server=state.server,
        clients=gather(state.clients),
        uplinks=gather(state.uplinks),
        downlinks=state.downlinks,
        participated=jnp.zeros_like(eligible),
        processed=jnp.zeros(eligible.shape, jnp.uint32) if selects_some else (),
        sums={},
        counts=counts,
        fault=fault_of_draw(cohort.ids, cohort.n_active, engine.setting.n_clients),
    )


def _all_exchanges(engine: Engine, table: Table, running: Running) -> Running:
    """The exchanges of a round in turn, those of a `Repeat` as a loop."""
    waiting = list(engine.exchanges)
    for group in engine.algorithm.exchanges:
        if isinstance(group, Repeat):
            n = len(group.exchanges)
            members, waiting = waiting[:n], waiting[n:]
            running = _repeat(members, group.times, table, running)
        else:
            running = _exchange(waiting.pop(0), table, running)
    return running


def _repeat(
    members: list[BoundExchange], times: int, table: Table, running: Running
) -> Running:
    """The exchanges of a `Repeat`, `times` over."""

    def passage(i, running: Running) -> Running:
        key = derive(table.inputs.key, Purpose.REPEAT, i)
        here = table._replace(passage=Passage(number=i, key=key))
        for bound in members:
            running = _exchange(bound, here, running)
        return running

    if members[0].engine.parallel == "pmap":  # dispatches every exchange by itself
        for i in range(times):
            running = passage(jnp.int32(i), running)
        return running
    # one trace serves for the names of the metrics and for the loop
    passage = jax.jit(passage)
    shapes = jax.eval_shape(passage, jnp.int32(0), running).sums
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    running = running._replace(sums={**zeros, **running.sums})
    return jax.lax.fori_loop(0, times, passage, running)


def _exchange(bound: BoundExchange, table: Table, running: Running) -> Running:
    """One exchange, in its six stages."""
    downlink = running.downlinks[bound.index]
    sent = broadcast(bound, running.server, downlink, table.passage.key)
    seating = _select(bound, table, running, sent)
    result = _work(bound, table, running, sent, seating.slots)
    aggregate = _reduce(bound, table, seating, result)
    server, metrics = _serve(bound, table, running, aggregate)
    counted = _count(bound, table, running, seating, result)
    served = counted._replace(server=server, sums=_with_gauges(counted.sums, metrics))
    return _with_states(bound, served, sent, seating, result)


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
    channel = bound.engine.downlink
    message = bound.exchange.broadcast(server)
    key = derive(key, Purpose.DOWNLINK, bound.index)
    payload, downlink = channel.encode(downlink, billed(message), key)
    received = channel.decode(payload)
    return Broadcast(
        message=unwrapped(with_billed(message, received)),
        downlink=downlink,
        bits=channel.bits(payload),
    )


def _select(
    bound: BoundExchange, table: Table, running: Running, sent: Broadcast
) -> Seating:
    """Whom the exchange is for, laid out in slots with their states."""
    return seated(
        bound,
        table.slots,
        table.participation,
        selected(bound, sent.message, table.inputs, table.passage),
        states=(running.clients, running.uplinks[bound.index]),
    )


def _work(
    bound: BoundExchange, table: Table, running: Running, sent: Broadcast, slots: Slots
) -> Result:
    """What all its clients do; a broadcast of which the data decide the length is billed.

    Keys travel as arrays, which pass into every lift.
    """
    inputs, passage = table.inputs, table.passage
    shared = Shared(
        server=running.server,
        message=sent.message,
        inputs=inputs._replace(key=jax.random.key_data(inputs.key)),
        passage=passage._replace(key=jax.random.key_data(passage.key)),
    )
    result = over_cohort(bound)(shared, slots)
    if bound.exchange.address is not None or isinstance(sent.bits, int):
        return result
    totals = result.totals
    n_started = totals.n_started.astype(jnp.uint32)
    down = counted_bytes(sent.bits) * n_started
    return result._replace(totals=totals._replace(downlink_bytes=down))


def _reduce(
    bound: BoundExchange, table: Table, seating: Seating, result: Result
) -> Aggregate:
    """What the server receives."""
    reduce, total = bound.exchange.reduce, result.totals.contribution
    if reduce.keep:
        total = _stack(result.stacked, seating.slots, table.inputs.cohort.ids)
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
    bound: BoundExchange, table: Table, running: Running, aggregate: Aggregate
) -> tuple[Any, dict[str, jax.Array]]:
    """The server's next state, and its metrics."""
    key = derive(table.passage.key, Purpose.SERVER, bound.index)
    given = trees.described(aggregate.value)
    with noted(f"in the server of exchange {bound.index}, which was given {given}"):
        return bound.exchange.server(running.server, aggregate, key)


def _count(
    bound: BoundExchange,
    table: Table,
    running: Running,
    seating: Seating,
    result: Result,
) -> Running:
    """The counts, the clients' metrics and the fault, this exchange included."""
    totals = result.totals
    fault = jnp.minimum(running.fault, result.fault)
    if bound.sum_shows_nan:
        fault = jnp.minimum(fault, fault_of_sum(totals.contribution))
    processed = rows_processed(
        bound, table.participation, seating.selected, running.processed
    )
    return running._replace(
        participated=running.participated | seating.selected,
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
    running: Running,
    sent: Broadcast,
    seating: Seating,
    result: Result,
) -> Running:
    """The states of clients and channels after the exchange."""
    index = bound.index
    before = (running.clients, running.uplinks[index])
    found = (result.state, result.uplink)
    clients, uplink = states_after(seating, before, found)

    def replaced(row, new):
        return (*row[:index], new, *row[index + 1 :])

    return running._replace(
        clients=clients,
        uplinks=replaced(running.uplinks, uplink),
        downlinks=replaced(running.downlinks, sent.downlink),
    )


# The end of a round


def _check_metrics(running: Running) -> None:
    """Refuses metrics that bear the names of the engine's own."""
    if taken := RESERVED & set(running.sums):
        raise ValueError(
            f"metrics named {sorted(taken)} are the engine's own; give the task's "
            "or the method's other names"
        )


def _check_server(state: RoundState, running: Running) -> None:
    """Refuses a server state of another form than before the round.

    Between exchanges the server may carry more; from round to round it may not.
    """
    if problem := trees.difference(state.server, running.server):
        raise ValueError(
            f"the server's state after a round is not like the one before it: {problem}"
        )


def _metrics(engine: Engine, table: Table, running: Running) -> dict[str, Any]:
    """Sums and counts of the round."""
    participation = table.participation
    inputs, participated = table.inputs, running.participated
    came = arrived(engine, inputs, participation, participated)
    examples = jnp.where(came, participation.sizes, 0)
    counts = {
        **running.counts,
        "clients": jnp.sum(came, dtype=jnp.int32),
        "examples": jnp.sum(examples, dtype=jnp.int32),
        "processed": examples_processed(engine, participation, running.processed, came),
    }
    return {"ratios": running.sums, "counts": counts}


def _state_after(
    engine: Engine,
    table: Table,
    state: RoundState,
    running: Running,
    places: jax.Array,
) -> RoundState:
    """The state after the round; the one before it, if the round went wrong."""
    good = is_good(running.fault)
    # Places outside of the store drop a write: those of empty slots, and all of a round
    # that went wrong.
    where = jnp.where(table.slots.active & good, places, int(Fault.NONE))

    def scatter(store, new):
        written = store.at[where].set(new, mode="drop")
        if not engine.shares_states:
            return written
        # As it came, or the next round would be compiled again.
        return jax.lax.with_sharding_constraint(written, engine.state_sharding)

    return RoundState(
        server=trees.select(good, running.server, state.server),
        clients=jax.tree.map(scatter, state.clients, running.clients),
        uplinks=jax.tree.map(scatter, state.uplinks, running.uplinks),
        downlinks=trees.select(good, running.downlinks, state.downlinks),
        sampler=state.sampler,
        round=state.round + good.astype(jnp.int32),
    )
