"""A simulator in a few lines for people."""

from typing import TYPE_CHECKING

from fedjax_fm import trees
from fedjax_fm.engine.guarantee import summary_of

if TYPE_CHECKING:
    from fedjax_fm.engine.simulator import Simulator


def size(n: int) -> str:
    """1234567 -> '1.2 MB'."""
    value, unit = float(n), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{n} B" if unit == "B" else f"{value:.1f} {unit}"


def summarise(simulator: "Simulator") -> str:
    """Clients, parameters, bytes a round, memory and layout.

    Before `init` only what is known by then.
    """
    population, setting = simulator.population, simulator.setting
    lines = [
        repr(population),
        f"cohort: {setting.cohort_size} clients a round (at most {simulator.sampler.capacity})",
        f"frozen parameters: {trees.size(simulator.backbone):,} "
        f"({size(trees.nbytes(simulator.backbone))})",
        *summary_of(simulator.algorithm.privacy),
    ]
    if simulator.plan is None:
        return "\n".join(["Simulator", *lines, "not laid out yet: call init(delta)"])
    plan, mesh = simulator.plan, simulator.engine.mesh
    up, down = simulator.messages.bytes_per_client
    at_most = "" if simulator.messages.is_exact else " at most"
    data = "streamed from the host" if simulator.streams else "on every device"
    shared = (
        f"shared by {plan.n_devices} devices"
        if simulator.engine.shares_states
        else "on every device"
    )
    states = "on the host" if simulator.spills else shared
    lines += [
        f"trainable parameters: {trees.size(simulator.start.delta):,} "
        f"({size(trees.nbytes(simulator.start.delta))})",
        f"bytes of one client a round{at_most}: {size(up)} up, {size(down)} down; "
        f"of a whole cohort {size(up * setting.cohort_size)} up, "
        f"{size(down * setting.cohort_size)} down",
        "memory: examples "
        f"{size(sum(a.nbytes for a in population.arrays.values()))} {data}, "
        f"clients' states {size(simulator.start.bytes_of_states)} {states}, "
        f"{size(simulator.memory)} a device",
        f"layout: {plan.n_devices} device{'s' * (plan.n_devices > 1)} × "
        f"{plan.n_blocks} blocks × {plan.block_size} clients, mesh "
        f"{dict(mesh.shape)}, {simulator.engine.parallel}",
    ]
    return "\n".join(["Simulator", *(f"  {line}" for line in lines)])
