"""Fingerprints of functions, settings and arrays that two processes can compare.

Algorithms, channels and samplers are named tuples of functions that close over their
hyper-parameters. A walk through them gives each number its path. No address, order of a
set or hash seed of the process enters.
"""

import functools
import hashlib
import inspect
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

READ_WHOLE = 64 << 20  # bytes; of larger arrays PLACES entries are read
PLACES = 1 << 16
MOST_ENTRIES = 20_000  # of one walk
GOLDEN = (math.sqrt(5) - 1) / 2

# Functions of these libraries close over hyper-parameters only. What else a user's
# function closes over (a data set, a configuration with its number of rounds) is not a
# setting, and what the function computes is in the program.
LIBRARIES = ("fedjax_fm", "optax")
Found = dict[str, Any]  # path: text of a setting, or what `array_print` gives


def array_print(array: Any) -> dict[str, Any]:
    """Type, digest and a few moments of an array of numpy or jax.

    Args:
      array: of any shape and dtype; random keys count as their data. Of an array above
        64 MiB only 65,536 entries are read, spread evenly: a change of few entries
        elsewhere is not seen.

    Returns:
      {"type": "float32[3, 4]", "sha256": str, "moments": [mean, root mean square, mean
      along a fixed direction]}. Floats alone have moments, by which other values can be
      told from rounding.

    Example:
      >>> array_print(np.ones((3, 4), np.int32))["type"]
      'int32[3, 4]'
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    name = f"{array.dtype}{list(array.shape)}"
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return {"type": name, "sha256": "in parts on several hosts"}
    large = array.size * array.dtype.itemsize > READ_WHOLE
    values = np.asarray(_evenly(array) if large else array)
    hashed = hashlib.sha256(name.encode())
    hashed.update(_bytes_of(values))
    found: dict[str, Any] = {"type": name, "sha256": hashed.hexdigest()}
    if jnp.issubdtype(array.dtype, jnp.floating) and array.size:
        some = values if large else np.asarray(_evenly(values))
        found["moments"] = _moments(some)
    return found


def same_but_for_rounding(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two prints of different digest differ by rounding only.

    Args:
      before: from `array_print`.
      now: from `array_print`.

    Returns:
      Whether type and shape are the same, and all moments agree within a few units of
      the dtype's precision, at least 1e-5, relative to the root mean squares.
    """
    if before["type"] != now["type"] or "moments" not in before:
        return False
    dtype = before["type"].partition("[")[0]
    rounding = float(jnp.finfo(dtype).eps)
    scale = before["moments"][1] + now["moments"][1]
    tolerance = max(1e-5, 4 * rounding) * scale
    pairs = zip(before["moments"], now["moments"], strict=True)
    return all(abs(a - b) <= tolerance for a, b in pairs)


def describe(name: str, value: Any) -> Found:
    """Settings and arrays of `value` by path.

    Args:
      name: the first part of every path.
      value: a function, a container, an array, a number or a text.

    Returns:
      {path: text of a setting, or the print of an array}, at most 20,000 entries.

    Example:
      >>> describe("channel", {"bits": 4, "shares": (0.5, None)})
      {'channel.bits': '4', 'channel.shares.0': '0.5', 'channel.shares.1': 'None'}
    """
    found: Found = {}
    for path, entry in _walk(name, value, ()):
        found.setdefault(path, entry)
        if len(found) >= MOST_ENTRIES:
            break
    return found


def _walk(path: str, value: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """(path, setting or print) of everything below `value`, which lies in `above`."""
    if id(value) in above:
        return
    above = (*above, id(value))
    if isinstance(value, (jax.Array, np.ndarray)):
        yield path, array_print(value)
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        yield path, repr(value)
    elif isinstance(value, np.generic):
        yield path, repr(value.item())
    else:
        yield from _inside(path, value, above)


def _inside(path: str, value: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """(path, setting or print) of the parts of a function, a container or an object."""
    if isinstance(value, (functools.partial, jax.tree_util.Partial)):
        arguments = {str(i): v for i, v in enumerate(value.args)}
        parts = {"": value.func, **arguments, **value.keywords}
    elif inspect.ismethod(value):
        parts = {"": value.__func__, "self": value.__self__}
    elif isinstance(value, types.FunctionType):
        yield path, _name_of(value)
        parts = _closed_over(value)
    elif callable(value) and hasattr(value, "__wrapped__"):
        parts = {"": value.__wrapped__}  # of jit, cache, custom derivatives
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = value._asdict()  # type: ignore[attr-defined]
    elif isinstance(value, (list, tuple)):
        parts = {str(i): part for i, part in enumerate(value)}
    elif isinstance(value, (dict, types.MappingProxyType)):
        parts = {str(key): value[key] for key in sorted(value, key=str)}
    elif isinstance(value, (set, frozenset)):
        parts = {str(i): part for i, part in enumerate(sorted(value, key=repr))}
    else:
        has_name = isinstance(value, type) or hasattr(value, "__name__")
        yield path, _name_of(value if has_name else type(value))
        return
    for name, part in parts.items():
        yield from _walk(f"{path}.{name}" if name else path, part, above)


def _closed_over(function: types.FunctionType) -> dict[str, Any]:
    """Variables that a function closes over, and its defaults.

    Of a user's function only what can be a setting.
    """
    parts = {}
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    for name, cell in zip(names, cells, strict=True):
        try:
            parts[name] = cell.cell_contents
        except ValueError:  # not yet bound
            continue
    signature = inspect.signature(function, follow_wrapped=False)
    parts |= {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if _is_library(function):
        return parts
    return {name: part for name, part in parts.items() if _may_be_setting(part)}


def _may_be_setting(value: Any) -> bool:
    if value is None or isinstance(value, (bool, int, float, complex, np.generic)):
        return True
    is_function = inspect.isroutine(value) or hasattr(value, "__wrapped__")
    return is_function or _is_library(type(value))


def _is_library(value: Any) -> bool:
    module = getattr(value, "__module__", None) or ""
    return module.partition(".")[0] in LIBRARIES


def _name_of(value: Any) -> str:
    """A name that is the same in a script, a notebook and an import of the script."""
    own = getattr(value, "__name__", type(value).__qualname__)
    name = getattr(value, "__qualname__", None) or own
    module = getattr(value, "__module__", None) or ""
    known = _is_library(value) or module.partition(".")[0] in sys.stdlib_module_names
    return f"{module}.{name}" if known else str(name)


def _evenly(array: Any) -> Any:
    """All entries, or PLACES of them that are spread evenly over every dimension."""
    if array.size <= PLACES:
        return array.reshape(-1)
    places = np.arange(PLACES) * GOLDEN % 1 * array.size
    places = np.sort(places.astype(np.int64))
    return array[np.unravel_index(places, array.shape)]


def _bytes_of(values: np.ndarray) -> bytes | memoryview:
    """The bytes of all entries; of Python objects those of their text."""
    if values.dtype.hasobject:
        return repr(values.tolist()).encode()
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8).data


def _moments(values: np.ndarray) -> list[float]:
    """Mean, root mean square and mean along a fixed direction; not finite counts as 0."""
    flat = values.reshape(-1).astype(np.float64)
    flat = np.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
    direction = np.cos(np.arange(len(flat)) * 1.7)
    mean_square = (flat**2).mean()
    along = (flat * direction).mean()
    return [float(flat.mean()), float(np.sqrt(mean_square)), float(along)]
