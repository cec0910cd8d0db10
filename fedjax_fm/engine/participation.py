"""Who takes part in a round.

A client of the cohort is, one after the other:

    drawn     named by the sampler, within its number of active ids
    eligible  drawn, and has an example and the time for a local step
    selected  eligible, and the exchange is for it (`Exchange.selects`)
    arrived   selected, and its upload got through (`Behaviour.drops`)

Those who are selected are laid out in slots; a slot without a client is not active.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm.engine import state_rows
from fedjax_fm.engine.billing import limbs
from fedjax_fm.engine.data import n_processed, n_steps
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.engine.parts import BoundExchange, Engine, Passage, RoundInputs, Slots
from fedjax_fm.engine.plan import assign
from fedjax_fm.types import Tree


class Participation(NamedTuple):
    """Which clients of a cohort may take part, and with how much work.

    In the sampler's order.
    """

    eligible: jax.Array  # bool[C]
    sizes: jax.Array  # i32[C], examples
    limits: jax.Array | None  # i32[C], most local steps; None where nothing limits them


def step_limit(
    engine: Engine, client: jax.Array, round_index: jax.Array, round_key: jax.Array
) -> jax.Array | None:
    """i32[], local steps that a straggler manages; None where nothing limits them."""
    if engine.behaviour.most_steps is None:
        return None
    key = derive(round_key, Purpose.BEHAVIOUR, client, 0)
    return engine.behaviour.most_steps(client, round_index, key)


def arrives(
    engine: Engine,
    active: jax.Array,
    client: jax.Array,
    round_index: jax.Array,
    round_key: jax.Array,
) -> jax.Array:
    """bool[]: is active and does not drop out."""
    if engine.behaviour.drops is None:
        return active
    key = derive(round_key, Purpose.BEHAVIOUR, client, 1)
    return active & ~engine.behaviour.drops(client, round_index, key)


def participation_of(engine: Engine, inputs: RoundInputs) -> Participation:
    """Who of the cohort is eligible, and how much each may do."""
    cohort, offsets = inputs.cohort, inputs.data.offsets
    if engine.n_min == engine.n_max:
        # nothing to read, and no memory that grows with the cohort
        sizes = jnp.full(cohort.ids.shape, engine.n_max, jnp.int32)
    else:
        sizes = offsets[cohort.data_places + 1] - offsets[cohort.data_places]

    def limit(client):
        return step_limit(engine, client, inputs.round, inputs.key)

    limits = jax.vmap(limit)(cohort.ids)
    drawn = jnp.arange(cohort.ids.shape[0]) < cohort.n_active
    eligible = drawn & (sizes > 0)
    if limits is not None:
        eligible &= limits > 0
    return Participation(eligible, jnp.asarray(sizes), limits)


def local_steps(bound: BoundExchange, participation: Participation) -> jax.Array:
    """i32[C]: steps of each client in this exchange."""
    batches = bound.exchange.batches
    return n_steps(participation.sizes, batches, participation.limits)


def wanted_by(
    bound: BoundExchange, message: Tree, inputs: RoundInputs, passage: Passage
) -> jax.Array:
    """bool[C]: whom the exchange is for, eligible or not."""
    ids = jnp.asarray(inputs.cohort.ids)
    selects = bound.exchange.selects
    if selects is None:
        return jnp.ones(ids.shape, bool)

    def of_client(client):
        key = derive(passage.key, Purpose.SELECT, client, bound.index)
        return selects(message, client, key)

    return jax.vmap(of_client)(ids)


# Slots


def slots_of_all(engine: Engine, participation: Participation) -> Slots:
    """The round's own layout: all who are eligible, those of like load side by side.

    The load is that of the exchanges that everyone computes, if there are any.
    """
    common = [e for e in engine.exchanges if e.exchange.selects is None]
    load = None
    if not engine.all_alike:
        loads = [local_steps(e, participation) for e in common or engine.exchanges]
        load = jnp.asarray(sum(loads))
    number, active = _assigned(engine, participation.eligible, load)
    return Slots(number=number, active=active, state=(), uplink=())


def _assigned(
    engine: Engine, active: jax.Array, load: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """`assign`, worked out whole by every device.

    XLA's partitioner would let each work out its own slots, and send parts of them to
    and fro in several small messages a round.
    """
    layout = assign(active, load, engine.plan)
    if engine.plan.n_devices == 1 or engine.parallel == "pmap":
        return layout
    everywhere = NamedSharding(engine.mesh, P())
    return jax.lax.with_sharding_constraint(layout, everywhere)


class Seating(NamedTuple):
    """The slots of one exchange, and where their states lie in the round's own slots."""

    slots: Slots
    wanted: jax.Array  # bool[C], by the exchange, eligible or not
    # i32[D, n_blocks, W]; None: these are the round's own slots
    target: jax.Array | None


def seated(
    bound: BoundExchange,
    base: Slots,
    participation: Participation,
    wanted: jax.Array,
    states: tuple[Any, Any],
) -> Seating:
    """Lays out those who take part in this exchange, with their states.

    Args:
      bound: the exchange.
      base: the round's own slots.
      participation: of the cohort.
      wanted: bool[C], from `wanted_by`.
      states: (the algorithm's, the uplink's) of all, as in `base`.
    """
    if bound.exchange.selects is None:
        state, uplink = states
        slots = base._replace(state=state, uplink=uplink)
        return Seating(slots, wanted, None)
    capacity, n_slots = wanted.shape[0], base.number.size
    load = local_steps(bound, participation)
    here = participation.eligible & wanted
    number, active = _assigned(bound.engine, here, load)
    # where each client of the cohort sits in the round's own slots
    nowhere = jnp.zeros(capacity, jnp.int32)
    seats = jnp.arange(n_slots)
    place = nowhere.at[base.number.reshape(-1)].set(seats, mode="drop")
    source = place[jnp.minimum(number, capacity - 1)]
    target = jnp.where(number < capacity, source, n_slots)
    state, uplink = state_rows.taken(bound.engine, flat(states), source)
    slots = Slots(number=number, active=active, state=state, uplink=uplink)
    return Seating(slots, wanted, target)


def states_after(
    engine: Engine, seating: Seating, states: tuple[Any, Any], found: tuple[Any, Any]
) -> tuple[Any, Any]:
    """The states of all clients, in the round's own slots, after an exchange.

    Args:
      engine: of the run.
      seating: of the exchange.
      states: (the algorithm's, the uplink's) before it, in the round's own slots.
      found: what its clients left behind, in its slots.
    """
    if seating.target is None:
        return found
    after = state_rows.put(engine, flat(states), seating.target, found)
    return jax.tree.map(lambda new, old: new.reshape(old.shape), after, states)


def flat(tree: Tree) -> Tree:
    """Leaves [D, n_blocks, W, ...] -> [slots, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), tree)


# Counts


def arrived(
    engine: Engine,
    inputs: RoundInputs,
    participation: Participation,
    wanted: jax.Array,
) -> jax.Array:
    """bool[C]: eligible, wanted by an exchange, and its uploads arrived."""

    def of_client(active, client):
        return arrives(engine, active, client, inputs.round, inputs.key)

    active = participation.eligible & wanted
    ids = jnp.asarray(inputs.cohort.ids)
    return jax.vmap(of_client)(active, ids)


def rows_processed(
    bound: BoundExchange, participation: Participation, wanted: jax.Array, most: Any
) -> Any:
    """u32[C]: rows of each client's local steps, the most of any exchange so far.

    Args:
      bound: the exchange.
      participation: of the cohort.
      wanted: bool[C], from `wanted_by`.
      most: u32[C] so far; () in rounds whose exchanges all select everyone, which are
        counted at the end.
    """
    if bound.exchange.selects is None:
        return most
    batches = bound.exchange.batches
    rows = n_processed(participation.sizes, batches, participation.limits)
    return jnp.maximum(most, jnp.where(wanted, rows, 0))


def examples_processed(
    engine: Engine, participation: Participation, most: Any, came: jax.Array
) -> jax.Array:
    """u32[3], limbs of the rows that the local steps of a round went through.

    Each client is counted in the exchange with the most of them.

    Args:
      engine: of the run.
      participation: of the cohort.
      most: u32[C], from `rows_processed`.
      came: bool[C], from `arrived`: others do not count.
    """
    everyones = [e.exchange for e in engine.exchanges if e.exchange.selects is None]
    is_for_all = len(everyones) == len(engine.exchanges)
    if engine.all_alike and is_for_all:  # no array that grows with the cohort
        one = [n_processed(jnp.int32(engine.n_max), e.batches) for e in everyones]
        n_came = jnp.sum(came, dtype=jnp.int32).astype(jnp.uint32)
        return limbs(functools.reduce(jnp.maximum, one)) * n_came
    sizes, limits = participation.sizes, participation.limits
    found = [n_processed(sizes, e.batches, limits) for e in everyones]
    if not is_for_all:
        found.append(most)
    rows = jnp.where(came, functools.reduce(jnp.maximum, found), 0)
    in_limbs = jax.vmap(limbs)(rows)
    return jnp.sum(in_limbs, axis=0, dtype=jnp.uint32)
