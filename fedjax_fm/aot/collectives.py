"""What devices send to each other, read from a compiled program.

An operation counts by what it gives on one device, and by what a device sends for it
along a ring of its n devices:

    all-reduce of b bytes            2 (n - 1) / n b
    all-gather that gives b bytes      (n - 1) / n b
    reduce-scatter that gives b bytes  (n - 1) b
    all-to-all of b bytes              (n - 1) / n b
    ragged-all-to-all of b bytes       (n - 1) / n b
    collective-permute of b bytes                  b

A ragged all-to-all counts by the rows that a device may be given: it writes them into an
array that may be much larger.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedjax_fm.aot.hlo import Operation, Program, nbytes

OPS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Loops of the library's, by the named scope around them: what each turn of it is.
LEVELS = {"blocks": "block", "steps": "step", "layers": "layer", "chunks": "chunk"}
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" \{(.*?)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")
_SIZE = re.compile(r"'([^']+)'=(\d+)")


class Collective(NamedTuple):
    """Operations of one kind at one level.

    Attributes:
      op: of `OPS`.
      bytes: that it gives on a device.
      sent: bytes that a device sends for it, along a ring.
      axis: of the mesh that its devices lie along; "all" for several axes.
      level: how often: once a "round", or for each "block" of clients, local "step",
        "layer" of the model, "chunk" of its loss; "loop" for a turn of another loop,
        "run" for what happens before all rounds.
    """

    op: str
    bytes: int
    sent: int
    axis: str
    level: str


def collectives_of(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """All collective operations of a compiled program, in no order.

    Args:
      program: parsed.
      mesh: size of each axis, in order.
    """
    levels = _levels(program)
    found = []
    for computation, names in program.computations.items():
        for name in names:
            operation = program.operations[name]
            op = operation.opcode.removesuffix("-start")
            if op in OPS:
                level = levels.get(computation) or "run"
                found.append(_read(program, operation, op, mesh, level))
    return found


def _read(
    program: Program,
    operation: Operation,
    op: str,
    mesh: Mapping[str, int],
    level: str,
) -> Collective:
    """What one operation says."""
    shapes = operation.shapes
    gives_both = operation.opcode == f"{op}-start" and op != "all-reduce"
    if gives_both:  # what it was given, and what it gives
        shapes = shapes[len(shapes) // 2 :]
    given = int(nbytes(shapes))
    groups = groups_of(operation.text, math.prod(mesh.values()))
    n = max(len(group) for group in groups)
    if op == "ragged-all-to-all":
        given = _bytes_of_rows(program, operation, n)
    return Collective(
        op=op,
        bytes=given,
        sent=_sent(op, given, n),
        axis=_axis(groups, mesh),
        level=level,
    )


def _bytes_of_rows(program: Program, operation: Operation, n: int) -> int:
    """Bytes of the rows that one device may be given by a ragged all-to-all.

    The third operand has an entry for each row that passes between a device and the n
    others; as many rows as a device has entries for each of them are its own.
    """
    array = operation.shapes[-1]
    entries = program.operations[operation.operands[2]].shapes[0]
    _, dims = array
    (n_entries,) = entries[1]
    return int(nbytes([array])) // dims[0] * (n_entries // n)


def _sent(op: str, given: int, n: int) -> int:
    """Bytes that a device sends along a ring of n."""
    if n == 1:
        return 0
    if op == "all-reduce":
        return round(2 * (n - 1) / n * given)
    if op == "reduce-scatter":
        return (n - 1) * given
    if op == "collective-permute":
        return given
    return round((n - 1) / n * given)


def groups_of(text: str, n_devices: int) -> list[tuple[int, ...]]:
    """The devices that an operation joins, as positions in the mesh.

    Args:
      text: of the operation.
      n_devices: of the mesh.

    Raises:
      ValueError: the text says it in a form that is not known.

    Example:
      >>> groups_of("replica_groups=[2,2]<=[4]", 4)
      [(0, 1), (2, 3)]
    """
    listed = _LISTED.search(text) or _PAIRS.search(text)
    if listed:
        rows = re.findall(r"\{([\d,]+)\}", listed.group(1))
        return [_numbers(row) for row in rows]
    if found := _IOTA.search(text):
        shape, dims, order = found.groups()
        table = _iota(dims, order).reshape(_numbers(shape))
        return [tuple(row) for row in table.tolist()]
    if found := _MESH.search(text):
        return _groups_of_mesh(*found.groups(), n_devices=n_devices)
    if "replica_groups={}" in text or "replica_groups" not in text:
        return [tuple(range(n_devices))]
    raise ValueError(f"replica groups in an unknown form: {text[:300]}")


def _groups_of_mesh(
    axes: str, dims: str | None, order: str | None, along: str, *, n_devices: int
) -> list[tuple[int, ...]]:
    """Groups along some axes of a mesh that the compiler has made."""
    sizes = {name: int(size) for name, size in _SIZE.findall(axes)}
    devices = _iota(dims, order) if dims else np.arange(n_devices)
    grid = devices.reshape(tuple(sizes.values()))
    joined = re.findall(r"'([^']+)'", along)
    rest = [i for i, name in enumerate(sizes) if name not in joined]
    last = [i for i, name in enumerate(sizes) if name in joined]
    n = math.prod(grid.shape[i] for i in last)
    table = grid.transpose(*rest, *last).reshape(-1, n)
    return [tuple(row) for row in table.tolist()]


def _iota(dims: str, order: str | None) -> np.ndarray:
    """The numbers from 0 on, in these dimensions, transposed."""
    sizes = _numbers(dims)
    table = np.arange(math.prod(sizes)).reshape(sizes)
    return table.transpose(_numbers(order)) if order else table


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _axis(groups: list[tuple[int, ...]], mesh: Mapping[str, int]) -> str:
    """The one axis of the mesh that all groups lie along."""
    places = list(itertools.product(*[range(size) for size in mesh.values()]))
    varies = set()
    for group in groups:
        columns = zip(*[places[device] for device in group], strict=True)
        names = [name for name, x in zip(mesh, columns, strict=True) if len(set(x)) > 1]
        varies.update(names)
    return varies.pop() if len(varies) == 1 else "all"


def _levels(program: Program) -> dict[str, str]:
    """{computation: what one turn of the innermost loop around it is}.

    The outermost loop is that over rounds; one that the library has no name for is the
    sampler's or a kernel's.
    """
    levels: dict[str, str] = {}

    def walk(computation: str, level: str) -> None:
        if computation in levels or computation not in program.computations:
            return
        levels[computation] = level
        for name in program.computations[computation]:
            operation = program.operations[name]
            inside = level
            if operation.opcode == "while":
                inside = _level_of(operation.place, level)
            for called in operation.calls:
                walk(called, inside)

    called = {c for x in program.operations.values() for c in x.calls}
    for computation in program.computations:
        if computation not in called:
            walk(computation, "")
    return levels


def _level_of(place: str, around: str) -> str:
    """What a turn of this loop is, by the scope that it lies in."""
    if not around:
        return "round"
    scopes = re.findall(r"[A-Za-z_]+", place)
    named = [LEVELS[scope] for scope in scopes if scope in LEVELS]
    is_inside = place.rstrip("/").endswith("while")
    return named[-1] if named and is_inside else "loop"
