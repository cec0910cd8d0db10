"""One client of one exchange: read, work, send, arrive. Nothing here knows of other clients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fedjax_fm import trees
from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.data import client_data
from fedjax_fm.engine.devices import MODEL
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.message import billed, unwrap
from fedjax_fm.engine.parts import (
    NO_CLIENT,
    Engine,
    Result,
    Shared,
    Slots,
    Totals,
    digits,
)
from fedjax_fm.types import ClientOutput, Tree


def most_steps(
    engine: Engine, client: jax.Array, round_index: jax.Array, round_key: jax.Array
) -> jax.Array | None:
    """i32[], what a straggler manages in this round; None where nothing limits it."""
    limit = engine.behaviour.most_steps
    return (
        None
        if limit is None
        else limit(client, round_index, derive(round_key, Purpose.BEHAVIOUR, client, 0))
    )


def arrives(
    engine: Engine,
    active: jax.Array,
    client: jax.Array,
    round_index: jax.Array,
    round_key: jax.Array,
):
    """bool[]: takes part and does not drop out."""
    if engine.behaviour.drops is None:
        return active
    key = derive(round_key, Purpose.BEHAVIOUR, client, 1)
    return active & ~engine.behaviour.drops(client, round_index, key)


def _bytes_of(bits: int | jax.Array) -> jax.Array | tuple:
    """What a client's payload adds to the bill.

    Digits of its bytes, () where shapes tell them beforehand.
    """
    return () if isinstance(bits, int) else digits((bits + 7) // 8)


def _whole(engine: Engine, upload: Tree) -> Tree:
    """The upload in one piece on every device of the axis `model`.

    A channel's loops may not wait for each other.
    """
    if engine.mesh.shape[MODEL] == 1:
        return upload
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P()), upload)


def one_client(engine: Engine, index: int, shared: Shared) -> Callable[[Slots], Result]:
    """Builds the work of one slot in exchange `index`."""
    exchange = engine.exchanges[index]
    work = exchange.client(shared.backbone, shared.message)  # once a round and device
    n_cohort = shared.cohort.ids.shape[0]
    round_key, passage_key = (
        jax.random.wrap_key_data(k) for k in (shared.key, shared.passage_key)
    )

    def run(slot: Slots) -> Result:
        number = jnp.minimum(
            slot.number, n_cohort - 1
        )  # an empty slot reads the last client and counts nothing
        client, place = shared.cohort.ids[number], shared.cohort.data_places[number]
        view = client_data(
            shared.data,
            client,
            place,
            slot.active,
            shared.round,
            exchange.batches,
            round_key,
            engine.n_max,
            most_steps(engine, client, shared.round, round_key),
            shared.repeat,
        )
        mine, fetched = shared.message, ()
        if exchange.address is not None:
            mine = exchange.address(shared.message, slot.state, client)
            fetched = _bytes_of(identity().bits(billed(mine)))
            mine = unwrap(mine)
        output: ClientOutput = work(
            mine, slot.state, view, derive(passage_key, Purpose.CLIENT, client, index)
        )
        upload = _whole(engine, output.upload)
        payload, wire = engine.uplink.encode(
            slot.wire, upload, derive(passage_key, Purpose.UPLINK, client, index)
        )
        sent = engine.uplink.decode(payload)
        state = output.state(sent) if callable(output.state) else output.state
        searched = (
            ()
            if engine.sum_tells(exchange) and not engine.looks_at_each
            else (output.upload, sent)
        )
        finite = trees.all_finite((searched, output.weight, dict(output.metrics)))
        arrived = arrives(engine, slot.active, client, shared.round, round_key)
        contribution = exchange.reduce.lift(shared.server, sent, output.weight)
        metrics = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float32), dict(output.metrics)
        )
        counted = (
            contribution,
            metrics,
            jnp.int32(1),
            _bytes_of(engine.uplink.bits(payload)),
        )
        # An empty slot may have computed anything, NaN included: select, never multiply by zero.
        contribution, metrics, n_clients, uplink = trees.select(
            arrived, counted, jax.tree.map(jnp.zeros_like, counted)
        )
        fetched = jax.tree.map(lambda x: jnp.where(slot.active, x, 0), fetched)
        kept, summed = (
            ((contribution, arrived), ())
            if exchange.reduce.keep
            else ((), contribution)
        )
        if engine.behaviour.drops is not None or exchange.selects is not None:
            # Elsewhere the states of empty slots are dropped when they are scattered.
            state, wire = trees.select(arrived, (state, wire), (slot.state, slot.wire))
        totals = Totals(
            contribution=summed,
            metrics=metrics,
            n_started=slot.active.astype(jnp.int32),
            n_clients=n_clients,
            uplink=uplink,
            downlink=fetched,
        )
        return Result(
            totals=totals,
            kept=kept,
            bad=jnp.where(arrived & ~finite, client, NO_CLIENT),
            state=state,
            wire=wire,
        )

    return run
