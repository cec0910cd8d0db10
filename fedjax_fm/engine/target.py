"""The machines that rounds run on, or are compiled for: the one place that asks JAX."""

import os
from typing import Any, NamedTuple

import jax


class Target(NamedTuple):
    """Devices for rounds.

    Attributes:
      name: of the machines, for people: "this machine", "v5e:2x4".
      devices: all of them, in JAX's order.
      platform: "cpu", "gpu" or "tpu".
      memory: bytes that a device may hold.
      is_here: whether something can run on them; else rounds can be compiled for them.
    """

    name: str
    devices: tuple[Any, ...]
    platform: str
    memory: int
    is_here: bool


def this_machine() -> Target:
    """The devices that JAX has in this process, and in those that it is joined to.

    Example:
      >>> this_machine().is_here
      True
    """
    devices = tuple(jax.devices())
    return Target(
        name="this machine",
        devices=devices,
        platform=devices[0].platform,
        memory=memory_of(jax.local_devices()[0]),
        is_here=True,
    )


def memory_of(device: Any) -> int:
    """Bytes that a device may hold.

    Args:
      device: of this process: another's cannot be asked. CPU devices share the
        machine's memory.
    """
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return of_machine // len(jax.devices())
