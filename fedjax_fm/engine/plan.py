"""How a cohort is laid over devices and blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Plan(NamedTuple):
    """The layout of a round; part of a run's identity, as it orders float sums.

    Attributes:
      n_devices: that carry clients.
      block_size: clients that one device computes at once, by vmap.
      n_blocks: blocks that a device has room for.
    """

    n_devices: int
    block_size: int
    n_blocks: int

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
    platform: str = "cpu",
    least_devices: int = 1,
) -> Plan:
    """Lays `capacity` clients over `n_devices`.

    Args:
      capacity: clients of the largest cohort.
      n_devices: that there are.
      block_size: clients that a device computes at once. None chooses: on CPU as many as
        stay in a core's cache, often one, as a client's own matrices fill a core; on
        accelerators all of a device's clients (the simulator halves it until the rounds
        fit).
      lane_bytes: what one client holds of its own while it works: its delta, upload and
        state.
      fixed_devices: False lets a cohort that fits into one CPU block stay on one
        device, as talking to the second one would cost more than the round.
      platform: of the devices, "cpu", "gpu" or "tpu".
      least_devices: that are used in any case, some of them for no client: each of
        several processes has to take part.

    Returns:
      The layout; at most as many devices as clients, or `least_devices`.

    Raises:
      ValueError: a block of less than one client.

    Example:
      >>> make_plan(100, 2, block_size=8)
      Plan(n_devices=2, block_size=8, n_blocks=7)
    """
    if block_size is not None and block_size < 1:
        raise ValueError(f"expected block_size >= 1, got block_size={block_size}")
    if block_size is None and platform == "cpu":
        block_size = max(CPU_BLOCK_BYTES // max(lane_bytes, 1), 1)
        if not fixed_devices and capacity <= block_size:
            n_devices = 1
    n_devices = max(min(n_devices, capacity), least_devices)
    per_device = -(-capacity // n_devices)
    block_size = per_device if block_size is None else min(block_size, per_device)
    n_blocks = -(-per_device // block_size)
    return Plan(n_devices, block_size, n_blocks)


def assign(
    active: jax.Array, load: jax.Array | None, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """Assigns a cohort to slots: those of like load side by side, devices loaded alike.

    Args:
      active: bool[C], who gets a slot.
      load: i32[C], local steps; None if all are alike and those who are active come
        first.
      plan: the layout.

    Returns:
      (number, active), i32 and bool[D, n_blocks, W]: which of the cohort has the slot, C
      for an empty one. Longest clients first, so the last blocks may be empty.
    """
    capacity = active.shape[0]
    n_blocks = plan.n_blocks * plan.n_devices
    if load is None or n_blocks == 1:
        order = jnp.arange(capacity, dtype=jnp.int32)
    else:
        order = _longest_first(jnp.where(active, load, -1))

    def lay(values, fill):
        missing = plan.slots - capacity
        values = jnp.pad(values, (0, missing), constant_values=fill)
        rows = values.reshape(plan.n_blocks, plan.n_devices, plan.block_size)
        # Snake: every second row of blocks starts from the other end, as its first
        # block is its heaviest.
        is_odd = jnp.arange(plan.n_blocks) % 2 == 1
        rows = jnp.where(is_odd[:, None, None], rows[:, ::-1], rows)
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
    # 0, of those who are not active, stays the smallest
    load = load.astype(jnp.uint32) + 1
    step = jnp.max(load) // most + 1
    coarse = (load + step - 1) // step
    places = jnp.arange(capacity, dtype=jnp.uint32)
    words = ((most + 1 - coarse) << place_bits) | places
    in_order = jnp.sort(words) & jnp.uint32(2**place_bits - 1)
    return in_order.astype(jnp.int32)
