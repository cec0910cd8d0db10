"""How a cohort is laid over devices and blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Plan(NamedTuple):
    """The layout of a round; part of a run's identity, as it decides the order of float sums."""

    n_devices: int
    block_size: int  # clients that one device computes at once, by vmap
    n_blocks: int  # blocks a device has room for

    @property
    def slots(self) -> int:
        """Places for clients; at least the cohort's capacity."""
        return self.n_devices * self.block_size * self.n_blocks


# What a block's clients may take together on a CPU: about a core's second-level cache.
CPU_BLOCK_BYTES = 512 * 1024


def make_plan(
    capacity: int,
    n_devices: int,
    block_size: int | None = None,
    lane_bytes: int = 1 << 40,
    fixed_devices: bool = True,
) -> Plan:
    """Lays `capacity` clients over `n_devices`.

    Args:
      block_size: None chooses. On CPU as many clients as stay in a core's cache, often
        one: a client's own matrices fill a core. On accelerators all of a device's
        clients (the simulator halves it until the rounds fit).
      lane_bytes: what one client holds of its own while it works: its delta, upload and state.
      fixed_devices: False lets a cohort that fits into one CPU block stay on one
        device, as talking to the second one would cost more than the round.
    """
    on_cpu = jax.default_backend() == "cpu"
    if block_size is not None and block_size < 1:
        raise ValueError(f"expected block_size >= 1, got block_size={block_size}")
    if block_size is None and on_cpu:
        block_size = max(CPU_BLOCK_BYTES // max(lane_bytes, 1), 1)
        if not fixed_devices and capacity <= block_size:
            n_devices = 1
    n_devices = min(n_devices, capacity)
    per_device = -(-capacity // n_devices)
    block_size = per_device if block_size is None else min(block_size, per_device)
    return Plan(n_devices, block_size, -(-per_device // block_size))


def deal(
    active: jax.Array, load: jax.Array | None, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """Lays a cohort out as blocks of clients of like load, the loads of the devices
    close to each other.

    Args:
      active: bool[C]; load: i32[C], local steps; None if all are alike and those who
        are active come first.

    Returns:
      (slots, active): which of the cohort, i32 and bool[D, n_blocks, W]. Longest
      clients first, so the last blocks may be empty.
    """
    capacity = active.shape[0]
    blocks = plan.n_blocks * plan.n_devices
    if load is None or blocks == 1:
        order = jnp.arange(capacity, dtype=jnp.int32)
    else:
        order = _longest_first(jnp.where(active, load, -1))

    def lay(values, fill):
        values = jnp.pad(
            values, (0, plan.slots - capacity), constant_values=fill
        ).reshape(blocks, plan.block_size)
        # Snake: every second row of blocks is dealt from the other end, as its first
        # block is its heaviest.
        rows = values.reshape(plan.n_blocks, plan.n_devices, plan.block_size)
        rows = jnp.where(
            (jnp.arange(plan.n_blocks) % 2 == 1)[:, None, None], rows[:, ::-1], rows
        )
        return rows.swapaxes(0, 1)

    return lay(order, capacity), lay(active[order], False)


def _longest_first(load: jax.Array) -> jax.Array:
    """i32[C], the order of falling loads (at least -1); equal ones keep their order.

    Load and place share one word of 32 bits, which XLA's CPU backend sorts four times
    faster than pairs: where the largest load does not fit beside the place, loads are
    told apart more coarsely.
    """
    capacity = load.shape[0]
    place_bits = max(capacity - 1, 1).bit_length()
    most = jnp.uint32(2 ** (32 - place_bits) - 2)
    load = (
        load.astype(jnp.uint32) + 1
    )  # 0, of those who are not active, stays the smallest
    step = jnp.max(load) // most + 1
    coarse = (load + step - 1) // step
    words = ((most + 1 - coarse) << place_bits) | jnp.arange(capacity, dtype=jnp.uint32)
    return (jnp.sort(words) & jnp.uint32(2**place_bits - 1)).astype(jnp.int32)
