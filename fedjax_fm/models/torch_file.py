"""Reads and writes arrays in torch's files (`torch.save`, `.pt`, `.bin`) without torch.

A file is a ZIP archive: `data.pkl` says how the values nest, and each storage is a
record of its own. Reading builds arrays, dicts, lists and plain values alone; any other
class in a file is refused by name and never run, as by torch's `weights_only=True`.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.models.torch_pickle import DTYPES, pickled

# What pickle, zipfile and NumPy raise at bytes that nobody has written on purpose.
DAMAGED = (
    *(pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError),
    *(AttributeError, ArithmeticError, MemoryError, RuntimeError, RecursionError),
    *(OSError, struct.error, zlib.error, zipfile.BadZipFile),
)


class TorchFileError(ValueError):
    """A file that is no torch archive, is damaged, or holds more than arrays."""


# What torch writes; others are refused before anything is built.
OPCODES = frozenset(
    [
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "REDUCE"),
        *("BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    ]
)


class _Storage(NamedTuple):
    """One record of numbers, flat."""

    values: np.ndarray


class _Reader(pickle.Unpickler):
    """An unpickler that knows arrays and nothing else.

    No class of NumPy's can be had from it: a pickle may set the state of what it holds.
    """

    def __init__(self, archive: zipfile.ZipFile, top: str):
        body = archive.read(f"{top}/data.pkl")
        self._check(body)
        super().__init__(io.BytesIO(body))
        self.archive, self.top = archive, top

    def _check(self, body: bytes) -> None:
        """Refuses other classes, what torch does not write, and places without end.

        The memo of a pickle grows to the largest of its places at once.
        """
        for opcode, argument, _ in pickletools.genops(body):
            if opcode.name == "GLOBAL":
                self.find_class(*str(argument).split(" "))
            elif opcode.name not in OPCODES:
                raise TorchFileError(f"it holds the opcode {opcode.name}")
            elif opcode.name == "LONG_BINPUT" and int(argument or 0) > len(body):
                raise TorchFileError(f"it keeps a value at the place {argument}")

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return name
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in known:
            raise TorchFileError(
                f"it holds a {module}.{name}, which is no array; open it in torch and "
                "save its state dict alone"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        raw = self.archive.read(f"{self.top}/data/{key}")
        return _Storage(np.frombuffer(raw, DTYPES[kind]))


def load(path: str | os.PathLike[str]) -> Any:
    """Reads what `torch.save` wrote.

    Args:
      path: of the file, in the ZIP form of torch 1.6 and later.

    Returns:
      The dicts, lists and plain values of the file, with NumPy arrays as tensors.

    Raises:
      FileNotFoundError: no such file.
      TorchFileError: not such a file, a damaged one, or one with other classes.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "model.pt")
      ...     save(path, {"model": {"w": np.arange(3.0)}, "epoch": 2})
      ...     found = load(path)
      >>> found["model"]["w"].tolist(), found["epoch"]
      ([0.0, 1.0, 2.0], 2)
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            top = _top(archive)
            _check_byte_order(archive, top)
            return _Reader(archive, top).load()
    except FileNotFoundError:
        raise
    except TorchFileError as error:
        raise TorchFileError(f"{path} cannot be read: {error}") from error
    except DAMAGED as error:
        raise TorchFileError(
            f"{path} is no whole file of torch.save ({error}); save or fetch it again"
        ) from error


def save(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Writes a file that torch reads, with `weights_only=True` too.

    Args:
      path: of the file; it appears whole or not at all.
      value: dicts of arrays, which become tensors, and of plain values: text, numbers,
        bools, None, lists and dicts of them.

    Raises:
      TypeError: a value of another kind, or an array of a dtype that torch lacks.
    """
    path = Path(path)
    data, storages = pickled(value, path.name)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/byteorder", "little")
            for number, array in enumerate(storages):
                archive.writestr(f"archive/data/{number}", array.tobytes())
            archive.writestr("archive/version", "3\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _top(archive: zipfile.ZipFile) -> str:
    """The one folder of an archive."""
    tops = [x for x in archive.namelist() if x.endswith("/data.pkl")]
    if len(tops) != 1:
        raise TorchFileError(f"expected one data.pkl in it, got {len(tops)}")
    return tops[0].removesuffix("/data.pkl")


def _check_byte_order(archive: zipfile.ZipFile, top: str) -> None:
    """Refuses files of machines that store the high byte first."""
    record = f"{top}/byteorder"
    order = archive.read(record) if record in archive.namelist() else b"little"
    if order != b"little":
        raise TorchFileError(f"expected little-endian numbers, got {order.decode()}")


def _tensor(
    storage: _Storage, offset: int, size: tuple, stride: tuple, *rest: Any
) -> np.ndarray:
    """A view into a storage, copied; it may not leave the storage, nor repeat it."""
    values = storage.values
    if min((*size, *stride, offset), default=0) < 0:
        raise TorchFileError(
            f"a tensor has the shape {list(size)}, strides {list(stride)} and begins at "
            f"{offset}: expected no negative numbers"
        )
    if 0 in size:
        return np.zeros(size, values.dtype)
    last = offset + sum(step * (n - 1) for n, step in zip(size, stride, strict=True))
    if last >= len(values):
        raise TorchFileError(
            f"a tensor of shape {list(size)} lies outside of its {len(values)} numbers"
        )
    if math.prod(size) > len(values):
        raise TorchFileError(
            f"a tensor of shape {list(size)} repeats its {len(values)} numbers; save "
            "`tensor.contiguous()`"
        )
    width = values.dtype.itemsize
    strides = [step * width for step in stride]
    view = np.lib.stride_tricks.as_strided(values[offset:], size, strides)
    return np.array(view)


def _parameter(data: np.ndarray, *rest: Any) -> np.ndarray:
    """A trained parameter is its tensor."""
    return data
