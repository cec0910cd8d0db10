"""From one client to a cohort: blocks inside a device, devices side by side.

The only lifts there are.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm.engine.client import one_client
from fedjax_fm.engine.devices import CLIENTS
from fedjax_fm.engine.parts import NO_CLIENT, Engine, Result, Shared, Slots


@functools.lru_cache(maxsize=64)
def lift(engine: Engine, index: int) -> Callable[[Shared, Slots], Result]:
    """The exchange over all slots.

    `f(shared, slots[D, n_blocks, W, ...]) -> Result`, totals summed over devices.

    The same per-device function runs under `shard_map`, inside the program of many
    rounds, or under `pmap`, which dispatches every exchange by itself.
    """
    per_device = functools.partial(_per_device, engine, index)
    if engine.parallel == "pmap":
        return _pmapped(per_device, engine)

    def of_one_row(shared: Shared, slots: Slots) -> Result:
        def row(tree):
            return jax.tree.map(lambda x: x[0], tree)

        def rows(tree):
            return jax.tree.map(lambda x: x[None], tree)

        result = per_device(shared, row(slots))
        return result._replace(
            kept=rows(result.kept), state=rows(result.state), wire=rows(result.wire)
        )

    # check_vma costs 2.8 times here; equality with the plain loop is held by tests instead.
    return jax.shard_map(
        of_one_row,
        mesh=engine.mesh,
        in_specs=(P(), P(CLIENTS)),
        out_specs=Result(
            totals=P(), kept=P(CLIENTS), bad=P(), state=P(CLIENTS), wire=P(CLIENTS)
        ),  # type: ignore[arg-type]
        axis_names={CLIENTS},  # an axis `model` stays XLA's
        check_vma=False,
    )


def _pmapped(
    per_device: Callable[[Shared, Slots], Result], engine: Engine
) -> Callable[[Shared, Slots], Result]:
    """Pmap takes its operands in its own layout only."""
    mesh = Mesh(engine.mesh.devices.reshape(-1), (CLIENTS,))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(CLIENTS))
    totals_and_bad_agree = Result(totals=None, kept=0, bad=None, state=0, wire=0)  # type: ignore[arg-type]
    mapped = jax.pmap(
        per_device,
        CLIENTS,
        in_axes=(None, 0),
        out_axes=totals_and_bad_agree,
        devices=list(mesh.devices),
    )
    return lambda shared, slots: mapped(
        jax.device_put(shared, everywhere), jax.device_put(slots, split)
    )


def _per_device(engine: Engine, index: int, shared: Shared, slots: Slots) -> Result:
    result = _over_blocks(
        one_client(engine, index, shared), engine.plan.block_size, slots
    )
    if (
        engine.plan.n_devices == 1
    ):  # a sum over one device would still wait at a meeting point
        return result
    return result._replace(
        totals=jax.lax.psum(result.totals, CLIENTS),
        bad=jax.lax.pmin(result.bad, CLIENTS),
    )


def _over_blocks(
    run: Callable[[Slots], Result], block_size: int, slots: Slots
) -> Result:
    """A loop over the blocks of one device, [n_blocks, W, ...].

    Blocks that are empty are not computed.
    """
    # The inner jit only saves time: one trace serves for the shapes of the result and for the loop.
    block_of = jax.jit(jax.vmap(run) if block_size > 1 else _of_one(run))

    def step(i, carry: Result) -> Result:
        block = slots._replace(state=carry.state, wire=carry.wire)
        part = block_of(jax.tree.map(lambda x: x[i], block))

        def put(whole, new):
            return jax.tree.map(lambda x, y: x.at[i].set(y.astype(x.dtype)), whole, new)

        def add(total, x):
            return total + jnp.sum(x, axis=0, dtype=total.dtype)

        return Result(
            totals=jax.tree.map(add, carry.totals, part.totals),
            kept=put(carry.kept, part.kept),
            bad=jnp.minimum(carry.bad, jnp.min(part.bad)),
            state=put(carry.state, part.state),
            wire=put(carry.wire, part.wire),
        )

    shapes: Result = jax.eval_shape(block_of, jax.tree.map(lambda x: x[0], slots))
    n_blocks = slots.number.shape[0]
    start = Result(
        totals=jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes.totals),
        kept=jax.tree.map(
            lambda s: jnp.zeros((n_blocks, *s.shape), s.dtype), shapes.kept
        ),
        bad=jnp.int32(NO_CLIENT),
        state=slots.state,
        wire=slots.wire,
    )
    if (
        n_blocks == 1
    ):  # a loop of one passage costs more than what it saves when nobody comes
        return step(0, start)
    used = jnp.sum(
        jnp.any(slots.active, axis=1), dtype=jnp.int32
    )  # dealt longest first: empty blocks are last
    return jax.lax.fori_loop(0, used, step, start)


def _of_one(run: Callable[[Slots], Result]) -> Callable[[Slots], Result]:
    """Vmap of width one would turn every matrix product into a batched one, which CPUs
    run slower.
    """

    def block_of(block: Slots) -> Result:
        return jax.tree.map(lambda x: x[None], run(jax.tree.map(lambda x: x[0], block)))

    return block_of
