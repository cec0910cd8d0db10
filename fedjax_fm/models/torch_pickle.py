"""Pickles arrays as torch does, without torch: the opcodes of `torch.save`'s `data.pkl`."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
STORAGES = {dtype: name for name, dtype in DTYPES.items()}
PROTOCOL = 2  # of pickle, as torch writes
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n)R"


def pickled(value: Any, where: str) -> tuple[bytes, list[np.ndarray]]:
    """A value as torch pickles it, and the arrays of its storages in their order.

    Args:
      value: dicts and lists of arrays and of plain values.
      where: what it is called in an error.

    Raises:
      TypeError: a value of another kind, or an array of a dtype that torch lacks.
    """
    storages: list[np.ndarray] = []
    body = _pickled(value, storages, where)
    return pickle.PROTO + bytes([PROTOCOL]) + body + pickle.STOP, storages


def _pickled(value: Any, storages: list[np.ndarray], where: str) -> bytes:
    """The opcodes of a value, without the head and the end."""
    if isinstance(value, Mapping):
        start = ORDERED if isinstance(value, OrderedDict) else pickle.EMPTY_DICT
        items = b""
        for name, inner in value.items():
            key = _pickled(name, storages, where)
            items += key + _pickled(inner, storages, f"{where}[{name!r}]")
        return start + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list):
        items = [
            _pickled(inner, storages, f"{where}[{i}]") for i, inner in enumerate(value)
        ]
        body = b"".join(items)
        return pickle.EMPTY_LIST + pickle.MARK + body + pickle.APPENDS
    if isinstance(value, np.ndarray):
        return _pickled_array(value, storages, where)
    if value is None or type(value) in (str, int, float, bool):
        return _plain(value)
    raise TypeError(
        f"expected arrays, text, numbers, None, lists or dicts, got {where} of type "
        f"{type(value).__name__}"
    )


def _pickled_array(value: np.ndarray, storages: list[np.ndarray], where: str) -> bytes:
    """A tensor: its record, and how it lies in it."""
    if value.dtype not in STORAGES:
        raise TypeError(f"torch has no tensors of {value.dtype}, which {where} is of")
    array = np.ascontiguousarray(value).reshape(value.shape)
    kind = f"ctorch\n{STORAGES[array.dtype]}\n".encode()
    storages.append(array)
    place, size = _plain("storage"), _plain(array.size)
    key = _plain(str(len(storages) - 1))
    persistent = pickle.MARK + place + kind + key + _plain("cpu") + size + pickle.TUPLE
    strides = tuple(step // array.itemsize for step in array.strides)
    layout = _plain(0) + _plain(array.shape) + _plain(strides) + _plain(False)
    body = persistent + pickle.BINPERSID + layout + ORDERED
    return REBUILD + pickle.MARK + body + pickle.TUPLE + pickle.REDUCE


def _plain(value: Any) -> bytes:
    """The opcodes of a plain value."""
    return pickle.dumps(value, PROTOCOL)[2:-1]
