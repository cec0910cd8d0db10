"""What a compiled program says of its operations: where in the code they come from.

Reads the text of a compiled program: each operation's shape, what it calls, its FLOP if
it is a matrix product or a convolution, and the frames of Python that made it.
"""

import math
import re
from typing import NamedTuple

BYTES = {"f64": 8, "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"pred": 1, "s8": 1, "u8": 1, "s4": 0.5, "u4": 0.5}  # others have 4

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(([^)]*)\)")
_ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)="
    r"%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_PLACE = re.compile(r'op_name="([^"]*)"')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([0-9,]*)\}")
_KERNEL = re.compile(r"dim_labels=\w+_(\w+)->")
_TABLE = re.compile(r"^(\d+) (.*)$")
_FIELD = re.compile(r"(\w+)=(\d+)")

Shape = tuple[str, tuple[int, ...]]  # dtype, dimensions


class Operation(NamedTuple):
    """One operation of a compiled program.

    Attributes:
      opcode: of HLO.
      shapes: of what it gives.
      operands: names.
      calls: computations that it runs.
      place: the name stack of JAX, "jit(f)/while/body/dot_general".
      frame: number of the innermost frame of Python.
      text: all of it.
    """

    opcode: str
    shapes: list[Shape]
    operands: list[str]
    calls: list[str]
    place: str
    frame: int
    text: str


class Frame(NamedTuple):
    """A frame of Python."""

    file: str
    function: str
    parent: int  # number of the frame that called it; 0: none


class Program(NamedTuple):
    """A compiled program, by name.

    Attributes:
      operations: of all computations; names are unique in a program.
      computations: {name: names of its operations}.
      frames: by number.
    """

    operations: dict[str, Operation]
    computations: dict[str, list[str]]
    frames: dict[int, Frame]

    def stack(self, name: str) -> list[Frame]:
        """The frames that made an operation, innermost first.

        Args:
          name: of the operation.
        """
        found, number = [], self.operations[name].frame
        while number in self.frames and len(found) < len(self.frames):
            frame = self.frames[number]
            found.append(frame)
            number = frame.parent
        return found

    def inside(self, name: str) -> list[str]:
        """The operation and, for a fusion, those that it fuses.

        Args:
          name: of the operation.
        """
        operation = self.operations[name]
        if operation.opcode != "fusion":
            return [name]
        fused = [one for call in operation.calls for one in self.computations[call]]
        return [name, *fused]

    def products(self, name: str) -> list[str]:
        """Matrix products and convolutions that an operation makes.

        Args:
          name: of the operation.
        """
        made = ("dot", "convolution")
        return [one for one in self.inside(name) if self.operations[one].opcode in made]

    def flop(self, name: str) -> float:
        """FLOP of the matrix products and convolutions that an operation makes.

        Args:
          name: of the operation.
        """
        return sum(self._flop_of_one(one) for one in self.products(name))

    def nbytes(self, name: str) -> float:
        """Bytes that an operation reads and writes, each array once.

        A slice reads what it gives, and a slice that is written in place writes what it
        is given, not the array around it; a fusion's operands count whole only where
        they are no larger than what it gives.

        Args:
          name: of the operation.
        """
        operation = self.operations[name]
        given = nbytes(operation.shapes)
        known = [one for one in operation.operands if one in self.operations]
        read = [nbytes(self.operations[one].shapes) for one in known]
        opcodes = {self.operations[one].opcode for one in self.inside(name)}
        if "dynamic-update-slice" in opcodes:
            small = [size for size in read if size < given]
            return 2 * max(small, default=0)
        if opcodes & {"dynamic-slice", "gather"}:
            return given + sum(min(size, given) for size in read)
        return given + sum(read)

    def _flop_of_one(self, name: str) -> float:
        operation = self.operations[name]
        given = math.prod(operation.shapes[0][1])
        if operation.opcode == "dot":
            return 2.0 * given * self._contracted(operation)
        kernel = self.operations[operation.operands[1]].shapes[0][1]
        labels = _KERNEL.search(operation.text)
        n_out = kernel[labels.group(1).index("o")] if labels else kernel[-1]
        return 2.0 * given * math.prod(kernel) / max(n_out, 1)

    def _contracted(self, operation: Operation) -> int:
        """The length of the sums of a product."""
        left = self.operations[operation.operands[0]].shapes[0][1]
        found = _CONTRACTED.search(operation.text)
        axes = found.group(1).split(",") if found and found.group(1) else []
        return math.prod(left[int(axis)] for axis in axes)


def nbytes(shapes: list[Shape]) -> float:
    """Bytes of arrays.

    Args:
      shapes: their dtypes and dimensions.
    """
    return sum(BYTES.get(dtype, 4) * math.prod(sizes) for dtype, sizes in shapes)


def parsed(text: str) -> Program:
    """Reads the text of a compiled program.

    Args:
      text: `compiled.as_text()`.
    """
    operations: dict[str, Operation] = {}
    computations: dict[str, list[str]] = {}
    here: list[str] = []
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        found = _INSTRUCTION.match(line)
        if begins:
            here = computations.setdefault(begins.group(1), [])
        elif found:
            name, rest = found.groups()
            here.append(name)
            operations[name] = _operation(rest)
    return Program(operations, computations, _frames(text))


def _operation(text: str) -> Operation:
    """One instruction, from what stands behind its `=`."""
    found = _OPCODE.search(text)
    opcode, inside = found.groups() if found else ("", "")
    before = text[: found.start()] if found else text
    place, frame = _PLACE.search(text), _FRAME.search(text)
    return Operation(
        opcode=opcode,
        shapes=[(kind, _sizes(sizes)) for kind, sizes in _ARRAY.findall(before)],
        operands=_NAME.findall(inside),
        calls=[*_CALLS.findall(text), *_branches(text)],
        place=place.group(1) if place else "",
        frame=int(frame.group(1)) if frame else 0,
        text=text,
    )


def _branches(text: str) -> list[str]:
    found = _BRANCHES.search(text)
    return _NAME.findall(found.group(1)) if found else []


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _frames(text: str) -> dict[int, Frame]:
    """The table of frames at the head of the text, by number."""
    files = _table(text, "FileNames")
    functions = _table(text, "FunctionNames")
    places = {n: dict(_FIELD.findall(x)) for n, x in _table(text, "FileLocations")}
    named_files, named_functions = dict(files), dict(functions)
    frames = {}
    for number, row in _table(text, "StackFrames"):
        fields = dict(_FIELD.findall(row))
        place = places.get(int(fields["file_location_id"]), {})
        frames[number] = Frame(
            file=named_files.get(int(place.get("file_name_id", 0)), "").strip('"'),
            function=named_functions.get(
                int(place.get("function_name_id", 0)), ""
            ).strip('"'),
            parent=int(fields["parent_frame_id"]) - 1,  # written from 1, for none too
        )
    return frames


def _table(text: str, title: str) -> list[tuple[int, str]]:
    """The numbered rows below a title."""
    _, _, rest = text.partition(f"\n{title}\n")
    rows = []
    for line in rest.splitlines():
        found = _TABLE.match(line)
        if not found:
            break
        rows.append((int(found.group(1)), found.group(2)))
    return rows
