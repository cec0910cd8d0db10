"""The tensors of an ONNX file, and which of them a graph multiplies and adds.

A file is one message of protocol buffers: fields, each a number (a varint: 7 bits a
byte, the lowest first), whose last three bits say how the value is stored (0: a varint;
1: 8 bytes; 2: a length and so many bytes; 5: 4 bytes) and the others which field it is.
Only the fields that weights need are read, so that no other package is needed.

References:
  Protocol Buffers, Encoding; ONNX, onnx.proto.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_FLOAT = 1  # ONNX's code of f32
# Numbers of fields, by message.
_GRAPH = 7  # of a model
_NODE, _TENSOR = 1, 5  # of a graph
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4  # of a node
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9  # of a tensor


class Node(NamedTuple):
    """One operation of a graph.

    Attributes:
      operator: such as "MatMul".
      inputs: names of what it reads.
      outputs: names of what it gives.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxGraph(NamedTuple):
    """What was read of a file.

    Attributes:
      nodes: in the order of the file.
      tensors: {name: f32[...]}, those stored as f32, which are views of the file's
        bytes; shapes and other whole numbers are left out.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, np.ndarray]


def read_onnx(data: bytes) -> OnnxGraph:
    """Reads the graph of an ONNX file.

    Args:
      data: of the file.

    Returns:
      Its nodes and its stored tensors of f32.

    Raises:
      ValueError: it is cut off or no ONNX file, or holds f32 in another form than raw
        bytes.

    Example:
      >>> node = bytes([10, 1]) + b"x" + bytes([18, 1]) + b"y" + bytes([34, 3]) + b"Exp"
      >>> read_onnx(bytes([58, 13, 10, 11]) + node).nodes
      (Node(operator='Exp', inputs=('x',), outputs=('y',)),)
    """
    graphs = [value for number, value in _fields(memoryview(data)) if number == _GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"expected one graph, got {len(graphs)}")
    nodes, tensors = [], {}
    for number, value in _fields(graphs[0]):
        if number == _NODE:
            nodes.append(_node(value))
        elif number == _TENSOR:
            name, tensor = _tensor(value)
            if tensor is not None:
                tensors[name] = tensor
    return OnnxGraph(tuple(nodes), tensors)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: an int, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind not in (_EIGHT, _BYTES, _FOUR):
            raise ValueError(f"a field of kind {kind} at byte {at}")
        length = {_EIGHT: 8, _FOUR: 4}.get(kind)
        if length is None:
            length, at = _varint(data, at)
        if at + length > len(data):
            raise ValueError(f"{length} bytes wanted at {at} of {len(data)}")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value, shift = 0, 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError(f"a number is cut off at byte {at}")


def _text(value: Any) -> str:
    if isinstance(value, int):
        raise ValueError(f"expected a name, got the number {value}")
    return bytes(value).decode()


def _node(data: memoryview) -> Node:
    """A NodeProto."""
    found: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: []}
    for number, value in _fields(data):
        if number in found:
            found[number].append(_text(value))
    return Node(
        operator="".join(found[_OPERATOR]),
        inputs=tuple(found[_INPUT]),
        outputs=tuple(found[_OUTPUT]),
    )


def _tensor(data: memoryview) -> tuple[str, np.ndarray | None]:
    """The name and the numbers of a TensorProto; None: they are not f32."""
    name, kind, raw = "", 0, None
    dims: list[int] = []
    for number, value in _fields(data):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif number == _TYPE:
            kind = value
        elif number == _NAME:
            name = _text(value)
        elif number == _RAW:
            raw = value
    if kind != _FLOAT:
        return name, None
    n_bytes = 0 if raw is None else len(raw)
    if raw is None or n_bytes != 4 * int(np.prod(dims)):
        raise ValueError(f"the tensor {name!r} of {dims} has {n_bytes} raw bytes")
    return name, np.frombuffer(raw, "<f4").reshape(dims)


def _varints(data: memoryview) -> list[int]:
    """Numbers that are packed one behind the other."""
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found
