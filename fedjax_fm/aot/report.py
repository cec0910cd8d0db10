"""What can be said of rounds that are compiled, and not run."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import jax

from fedjax_fm import trees
from fedjax_fm.aot.collectives import Collective, collectives_of
from fedjax_fm.aot.hlo import Program, parsed
from fedjax_fm.engine.compiled import Compiled
from fedjax_fm.engine.devices import CLIENTS, MODEL
from fedjax_fm.engine.parts import Engine
from fedjax_fm.types import Tree

# Custom calls that are kernels: of Pallas on TPUs, of Triton and cuDNN on GPUs.
KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "__cudnn$fmha", "mosaic_gpu")


@dataclass(frozen=True)
class Report:
    """Rounds as they were compiled; all bytes are those of one device.

    Attributes:
      target: the machines.
      n_devices: of the mesh.
      mesh: {axis: devices along it}.
      block_size: clients that a device computes at once.
      n_blocks: blocks of them, at most.
      backbone, data, server, clients: bytes of what stays: the frozen parameters, the
        examples, the server's state, the states of clients and channels.
      arguments, outputs, temporaries, code: as the compiler counts them.
      donated: of the outputs, bytes that take the place of arguments.
      needed: arguments, temporaries, and outputs that are not donated.
      memory: that a device may use.
      fits: whether that is enough.
      collectives: what devices send to each other, like ones added up.
      n_collectives: how many operations each of these is.
      sent_each_round: by a device along the axis `clients`, once a round.
      floor: of that: 2 (n - 1) / n of the trainable tree, of which the devices along the
        axis `model` send a part each.
      kernels: {kernel: calls in the program}.
      seconds: of tracing, lowering and compiling.
    """

    target: str
    n_devices: int
    mesh: dict[str, int]
    block_size: int
    n_blocks: int
    backbone: int
    data: int
    server: int
    clients: int
    arguments: int
    outputs: int
    temporaries: int
    code: int
    donated: int
    needed: int
    memory: int
    fits: bool
    collectives: list[Collective]
    n_collectives: list[int]
    sent_each_round: int
    floor: int
    kernels: dict[str, int]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """What `json.dump` takes."""
        rows = zip(self.collectives, self.n_collectives, strict=True)
        listed = [row._asdict() | {"operations": n} for row, n in rows]
        fields = dataclasses.asdict(self)
        del fields["n_collectives"]
        return fields | {"collectives": listed}


def report(compiled: Compiled) -> Report:
    """Reads a compiled program.

    Args:
      compiled: of `Simulator.compile`.

    Returns:
      What it needs on a device, and what devices send to each other.

    Example:
      >>> import numpy as np, optax, fedjax_fm as ffm
      >>> task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      >>> population = ffm.Population.from_clients([{"x": np.ones(4)}] * 3)
      >>> method = ffm.fedavg(task, optax.sgd(0.1), epochs=1, batch_size=2)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2, devices=1)
      >>> report(simulator.compile(np.float32(0))).collectives  # one device: none
      []
    """
    engine, state = compiled.engine, compiled.state
    program = parsed(compiled.program.as_text())
    mesh = dict(engine.mesh.shape)
    found = collectives_of(program, mesh)
    rows, counts = _added_up(found)
    n = mesh[CLIENTS]
    delta = trees.nbytes(_delta_of(engine, state.server))
    memory = compiled.program.memory_analysis()
    parts = n if engine.shares_states else 1
    return Report(
        target=compiled.target.name,
        n_devices=engine.mesh.size,
        mesh=mesh,
        block_size=engine.plan.block_size,
        n_blocks=engine.plan.n_blocks,
        backbone=_on_a_device(compiled.backbone),
        data=_on_a_device(compiled.data),
        server=trees.nbytes((state.server, state.downlinks)),
        clients=trees.nbytes((state.clients, state.uplinks)) // parts,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        needed=compiled.needed or 0,
        memory=compiled.memory,
        fits=compiled.fits,
        collectives=rows,
        n_collectives=counts,
        sent_each_round=_sent_each_round(found),
        floor=round(2 * (n - 1) / n * delta / mesh[MODEL]),
        kernels=_kernels(program),
        seconds=compiled.seconds,
    )


def _delta_of(engine: Engine, server: Any) -> Tree:
    """The trainable tree in the server's state, by shape."""

    def read(server):
        return engine.algorithm.delta(server)

    return jax.eval_shape(read, server)


def _on_a_device(tree: Any) -> int:
    """Bytes of a tree with shardings, on one device."""

    def nbytes(leaf):
        shape = leaf.sharding.shard_shape(leaf.shape)
        whole = jax.ShapeDtypeStruct(shape, leaf.dtype)
        return trees.nbytes(whole)

    return sum(nbytes(leaf) for leaf in jax.tree.leaves(tree))


def _added_up(found: list[Collective]) -> tuple[list[Collective], list[int]]:
    """Collectives of the same kind, axis and level as one; (rows, operations in each)."""

    def kind(one: Collective) -> tuple[str, str, str]:
        return one.level, one.axis, one.op

    rows, counts = [], []
    for _, group in itertools.groupby(sorted(found, key=kind), key=kind):
        alike = list(group)
        n_bytes = sum(one.bytes for one in alike)
        sent = sum(one.sent for one in alike)
        rows.append(alike[0]._replace(bytes=n_bytes, sent=sent))
        counts.append(len(alike))
    return rows, counts


def _sent_each_round(found: list[Collective]) -> int:
    """Bytes that a device sends to those with other clients, once a round."""
    mine = [one for one in found if one.axis == CLIENTS and one.level == "round"]
    return sum(one.sent for one in mine)


def _kernels(program: Program) -> dict[str, int]:
    """{kernel: calls}, of those that there are."""
    calls = [x.text for x in program.operations.values() if x.opcode == "custom-call"]
    counts = {name: sum(f'"{name}' in text for text in calls) for name in KERNELS}
    return {name: n for name, n in counts.items() if n}
