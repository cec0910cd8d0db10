"""`fedjax-fm compile`: what a pod would say of a round, without the pod."""

import dataclasses
import json
from typing import Any

from rich.table import Table

from fedjax_fm import wire
from fedjax_fm.aot import finetuning
from fedjax_fm.aot.report import Report, report
from fedjax_fm.aot.topologies import topology
from fedjax_fm.engine.compiled import DoesNotFit
from fedjax_fm.finetune.methods import channel_of
from fedjax_fm.models.low_bits import FORMATS
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import nearest

# libtpu compiles several times faster with the same collectives, but the program takes
# up to twice the temporary memory.
FAST = {"exec_time_optimization_effort": -1.0}


def compiled(
    name: str,
    setup: finetuning.Setup,
    *,
    uplink: str | None = None,
    downlink: str | None = None,
    model_parallel: int = 1,
    block_size: int | None = None,
    fast: bool = False,
) -> Report:
    """Compiles the rounds for a topology.

    Args:
      name: of the topology.
      setup: what is fine-tuned.
      uplink, downlink: channels, as on the command line.
      model_parallel: devices over which the backbone is split.
      block_size: clients that a device computes at once; None: as many as fit.
      fast: compile for TPUs with less effort.

    Raises:
      UsageError: something that does not exist, does not go together or does not fit.
    """
    if setup.peft not in wire.METHODS:
        raise UsageError(nearest(setup.peft, wire.METHODS, "method"))
    if setup.frozen not in ("dense", *FORMATS):
        raise UsageError(nearest(setup.frozen, ("dense", *FORMATS), "frozen form"))
    if setup.split == "rows" and model_parallel == 1:
        raise UsageError(
            "--split rows needs devices that share a backbone, got --model-parallel 1"
        )
    try:
        target = topology(name)
        options = FAST if fast and target.platform == "tpu" else {}
        simulator, delta = finetuning.simulator(
            setup,
            target,
            uplink=channel_of(uplink),
            downlink=channel_of(downlink),
            model_parallel=model_parallel,
            block_size=block_size,
            compiler_options=options,
        )
        return report(simulator.compile(delta))
    except (DoesNotFit, ModuleNotFoundError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def as_json(found: Report, setup: finetuning.Setup) -> str:
    """One JSON object: the setup, and what the compiler says."""
    return json.dumps({"setup": dataclasses.asdict(setup), **found.as_json()})


def as_tables(found: Report) -> list[Any]:
    """What a terminal shows: memory, then collectives."""
    return [_memory(found), _collectives(found)]


def lines(found: Report) -> list[str]:
    """What stands below the tables."""
    axes = " × ".join(f"{n} {axis}" for axis, n in found.mesh.items())
    fits = "it fits" if found.fits else "IT DOES NOT FIT"
    calls = ", ".join(f"{n} {name}" for name, n in found.kernels.items())
    blocks = f"{found.n_blocks} blocks of {found.block_size} clients on each"
    return [
        f"{found.target}: {axes}; {blocks}",
        f"{_mb(found.needed)} MB of {_mb(found.memory)} MB on a device: {fits}",
        f"sent by a device each round along clients: {found.sent_each_round:,} bytes; "
        f"floor, a ring's all-reduce of what is trained: {found.floor:,}",
        f"kernels: {calls or 'none'}",
        f"compiled in {found.seconds:.0f} s; never run",
    ]


def _memory(found: Report) -> Table:
    """Bytes on a device by kind."""
    table = Table("on a device", "MB", title="memory")
    table.columns[1].justify = "right"
    rows = (
        ("frozen backbone", found.backbone),
        ("examples", found.data),
        ("server's state", found.server),
        ("clients' states", found.clients),
        ("arguments, padded", found.arguments),
        ("temporaries", found.temporaries),
        ("outputs", found.outputs),
        ("  of them donated", found.donated),
        ("needed in all", found.needed),
    )
    for name, n_bytes in rows:
        table.add_row(name, _mb(n_bytes))
    return table


def _collectives(found: Report) -> Table:
    """What devices send to each other."""
    table = Table("each", "axis", "operation", "number", "MB", title="collectives")
    for column in table.columns[3:]:
        column.justify = "right"
    rows = zip(found.collectives, found.n_collectives, strict=True)
    for one, n in rows:
        table.add_row(one.level, one.axis, one.op, str(n), _mb(one.bytes))
    return table


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.3f}"
