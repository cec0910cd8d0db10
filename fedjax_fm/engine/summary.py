"""A simulator in a few lines for people."""

from typing import NamedTuple

from fedjax_fm import trees
from fedjax_fm.engine.billing import bytes_per_client, in_units
from fedjax_fm.engine.data import shapes_of
from fedjax_fm.engine.dealt import DealtPopulation
from fedjax_fm.engine.guarantee import summary_of
from fedjax_fm.engine.parts import Engine
from fedjax_fm.engine.shapes import Shapes
from fedjax_fm.population.population import Population
from fedjax_fm.types import Privacy, Setting, Tree


class Layout(NamedTuple):
    """What is known once the trainable tree is."""

    engine: Engine
    shapes: Shapes
    streams: bool  # examples come from the host
    spills: bool  # clients' states lie in host memory
    memory: int  # bytes of a device


def summary(
    population: Population | DealtPopulation,
    *,
    setting: Setting,
    capacity: int,
    backbone: Tree,
    privacy: Privacy | None,
    layout: Layout | None,
) -> str:
    """Clients, parameters, bytes a round, memory and layout.

    Args:
      population: the clients' data.
      setting: sizes.
      capacity: of the sampler.
      backbone: the frozen parameters.
      privacy: of the algorithm.
      layout: None before `init`: then only what is known by then.
    """
    frozen = _size(trees.size(backbone), trees.nbytes(backbone))
    lines = [
        repr(population),
        f"cohort: {setting.cohort_size} clients a round (at most {capacity})",
        f"frozen parameters: {frozen}",
        *summary_of(privacy),
    ]
    if layout is None:
        return "\n".join(["Simulator", *lines, "not laid out yet: call init(delta)"])
    lines += _of_layout(layout, trees.nbytes(shapes_of(population).arrays))
    return "\n".join(["Simulator", *(f"  {line}" for line in lines)])


def _of_layout(layout: Layout, bytes_of_examples: int) -> list[str]:
    engine, shapes = layout.engine, layout.shapes
    plan, cohort_size = engine.plan, engine.setting.cohort_size
    bills = shapes.messages.bills
    up, down = bytes_per_client(bills)
    at_most = "" if all(bill.is_exact for bill in bills) else " at most"
    examples = "streamed from the host" if layout.streams else "on every device"
    states = "on every device"
    if engine.shares_states:
        states = f"shared by {plan.n_devices} devices"
    if layout.spills:
        states = "on the host"
    trained = _size(trees.size(shapes.delta), trees.nbytes(shapes.delta))
    return [
        f"trainable parameters: {trained}",
        f"bytes of one client a round{at_most}: {in_units(up)} up, {in_units(down)} "
        f"down; of a whole cohort {in_units(up * cohort_size)} up, "
        f"{in_units(down * cohort_size)} down",
        f"memory: examples {in_units(bytes_of_examples)} {examples}, clients' states "
        f"{in_units(shapes.bytes_of_states)} {states}, {in_units(layout.memory)} a "
        "device",
        f"layout: {plan.n_devices} device{'s' * (plan.n_devices > 1)} × "
        f"{plan.n_blocks} blocks × {plan.block_size} clients, mesh "
        f"{dict(engine.mesh.shape)}, {engine.parallel}",
    ]


def _size(numbers: int, n_bytes: int) -> str:
    return f"{numbers:,} ({in_units(n_bytes)})"
